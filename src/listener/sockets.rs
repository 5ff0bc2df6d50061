//! Where listening sockets come from, and how they change hands when a new process takes over from an old one.
//!
//! **Why.** A new binary, or a change that needs a restart, must cost no client a call. So the new process has to listen before
//! the old one stops, on the same addresses.
//!
//! **How.** In one of two ways:
//!
//! - *Handed over.* Whoever starts the process has bound the sockets and hands them to it (`LISTEN_FDS`, as systemd does for a
//!   socket unit). A listener takes the one that is bound to its address. Such a socket outlives the process: what waits in its queue is
//!   accepted by whoever has it next, and its file is not ours to remove. So no connection can be lost.
//! - *Shared* (`takeover: true`). Over TCP both processes bind the address with `SO_REUSEPORT`, and the kernel spreads new connections over
//!   them until the old one closes. A Unix socket is bound under another name and moved over the old one in one step, so that
//!   every dial finds one of the two.
//!
//! A socket that is closed for good takes its queue with it, so what waits there is accepted first. Over TCP that is not enough: whoever
//! connects between the last look at the queue and the close is reset. So a shared socket first gets a filter in the kernel
//! which drops what begins a connection and nothing else. Its clients notice a lost packet, and ask again after a second: then
//! the socket is gone, and they find the other process.

use std::{
    ffi::OsString,
    fs, io,
    net::SocketAddr,
    os::{
        fd::AsFd,
        linux::fs::MetadataExt,
        unix::{
            fs::FileTypeExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use listenfd::ListenFd;
use socket2::{Domain, SockAddr, SockFilter, SockRef, Socket, Type};
use tokio::net::TcpListener;

use crate::{config::Address, upstream::connect::prepare, worker::AcceptedSocket};

/// Connections that the kernel keeps for us before we accept them. When they are more, clients are left to try again, which
/// takes them a second and longer; so this has room for all clients of a busy proxy that come back at once. The kernel lowers
/// it to its own limit (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// A program for the kernel, which runs it on each packet that comes for a listening socket, from its TCP header on: drops a SYN without
/// an ACK, and nothing else. The numbers are those of `linux/bpf_common.h`.
const NO_BEGINNINGS: [SockFilter; 5] = {
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    [
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS),
        SockFilter::new(AND, 0, 0, SYN | ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
};

/// Makes listening sockets, and has those that the process was started with.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    handed_over: Vec<(Address, Bound)>,
    takeover: bool,
}

/// A socket that listens. It belongs to no runtime and never blocks.
#[derive(Debug)]
pub(crate) struct Bound {
    socket: Listening,
    /// Somebody else has it too, and goes on with it.
    is_handed_over: bool,
    /// Somebody else may have another one with the same address.
    is_shared: bool,
}

/// A socket whose connections the runtime of a thread waits for.
#[derive(Debug)]
pub(crate) struct Accepting {
    registered: Registered,
    bound: Bound,
}

#[derive(Debug)]
enum Registered {
    Tcp(TcpListener),
    Unix(tokio::net::UnixListener),
}

#[derive(Debug)]
enum Listening {
    Tcp(std::net::TcpListener),
    Unix(UnixListener, SocketFile),
}

/// The file of a Unix socket, and what tells it from a later one of the same name.
#[derive(Debug, PartialEq, Eq)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

// === impl Sockets ===

impl Sockets {
    /// With those of the environment. To be called before there are threads: it takes the variables away, so that no child of ours
    /// believes that they are meant for it.
    pub(crate) fn from_environment(takeover: bool) -> io::Result<Self> {
        let mut found = ListenFd::from_env();
        let mut handed_over = Vec::new();
        for index in 0..found.len() {
            let bound = take(&mut found, index)?;
            handed_over.push((bound.address()?, bound));
        }
        Ok(Self {
            handed_over,
            takeover,
        })
    }

    /// The socket that listens on this address: one that was handed over, or else a new one.
    pub(crate) fn listen(&mut self, address: &Address) -> io::Result<Bound> {
        if let Some(index) = self.handed_over.iter().position(|(it, _)| it == address) {
            return Ok(self.handed_over.swap_remove(index).1);
        }
        let socket = match address {
            Address::Tcp(address) => Listening::Tcp(listen_tcp(*address, self.takeover)?),
            Address::Unix(path) => listen_unix(path, self.takeover)?,
            // The configuration gives listeners no such address.
            Address::Host(..) => return Err(io::ErrorKind::InvalidInput.into()),
        };
        Ok(Bound {
            socket,
            is_handed_over: false,
            is_shared: self.takeover,
        })
    }

    /// Those that were handed over and that nobody has asked for.
    pub(crate) fn unused(&self) -> impl Iterator<Item = &Address> {
        self.handed_over.iter().map(|(address, _)| address)
    }
}

fn take(found: &mut ListenFd, index: usize) -> io::Result<Bound> {
    let gone = || io::Error::from(io::ErrorKind::NotFound);
    let socket = match found.take_unix_listener(index) {
        Ok(socket) => {
            let socket = socket.ok_or_else(gone)?;
            let address = socket.local_addr()?;
            let path = address.as_pathname().ok_or(io::ErrorKind::InvalidInput)?;
            let file = SocketFile::look(path)?;
            Listening::Unix(socket, file)
        }
        Err(_) => Listening::Tcp(found.take_tcp_listener(index)?.ok_or_else(gone)?),
    };
    let fd = match &socket {
        Listening::Tcp(socket) => socket.as_fd(),
        Listening::Unix(socket, _) => socket.as_fd(),
    };
    SockRef::from(&fd).set_nonblocking(true)?;
    Ok(Bound {
        socket,
        is_handed_over: true,
        is_shared: false,
    })
}

fn listen_tcp(address: SocketAddr, takeover: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        None,
    )?;
    // The connections of the process before this one may linger.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(takeover)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn listen_unix(path: &Path, takeover: bool) -> io::Result<Listening> {
    let live = look_at(path)?;
    if live && !takeover {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    let beside = beside(path);
    let _ = fs::remove_file(&beside);
    socket.bind(&SockAddr::unix(&beside)?)?;
    // It listens before it has its name: no dial may find a socket that refuses.
    let moved = socket
        .listen(BACKLOG)
        .and_then(|()| fs::rename(&beside, path));
    if let Err(error) = moved {
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    Ok(Listening::Unix(socket.into(), SocketFile::look(path)?))
}

/// Whether somebody listens there. What is no socket is an error, and is left alone.
fn look_at(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => Ok(UnixStream::connect(path).is_ok()),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "a file that is no socket is in its place",
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// A name in the same folder that no other process uses, and no longer than it must be: paths of sockets are short.
fn beside(path: &Path) -> PathBuf {
    path.with_file_name(OsString::from(format!(".{}", std::process::id())))
}

// === impl Bound ===

impl Bound {
    /// The address that was bound; the port is the real one where 0 was asked for.
    pub(crate) fn address(&self) -> io::Result<Address> {
        match &self.socket {
            Listening::Tcp(socket) => socket.local_addr().map(Address::Tcp),
            Listening::Unix(_, file) => Ok(Address::Unix(file.path.clone())),
        }
    }

    /// The same, of a socket that listens on a TCP address.
    pub(crate) fn tcp_address(&self) -> io::Result<SocketAddr> {
        match self.address()? {
            Address::Tcp(address) => Ok(address),
            Address::Unix(_) | Address::Host(..) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Lets the runtime of this thread wait for connections.
    pub(crate) fn register(self) -> io::Result<Accepting> {
        let registered = match &self.socket {
            Listening::Tcp(socket) => Registered::Tcp(TcpListener::from_std(socket.try_clone()?)?),
            Listening::Unix(socket, _) => {
                Registered::Unix(tokio::net::UnixListener::from_std(socket.try_clone()?)?)
            }
        };
        Ok(Accepting {
            registered,
            bound: self,
        })
    }

    fn is_ours(&self) -> bool {
        !self.is_handed_over
    }
}

impl Drop for Bound {
    /// Removes the file, if it is still the one that was made here.
    fn drop(&mut self) {
        if let Listening::Unix(_, file) = &self.socket
            && self.is_ours()
            && SocketFile::look(&file.path).is_ok_and(|now| now == *file)
        {
            let _ = fs::remove_file(&file.path);
        }
    }
}

// === impl Accepting ===

impl Accepting {
    pub(crate) fn address(&self) -> io::Result<Address> {
        self.bound.address()
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> io::Result<AcceptedSocket> {
        match &self.registered {
            Registered::Tcp(listener) => tcp(listener.accept().await?.0.into_std()?),
            Registered::Unix(listener) => {
                Ok(AcceptedSocket::Unix(listener.accept().await?.0.into_std()?))
            }
        }
    }

    /// Lets nobody begin a connection any more, if others will take those who try again. Connections that have begun come
    /// through. Says whether there may be such, which want to be accepted.
    pub(crate) fn turn_away(&self) -> io::Result<bool> {
        match &self.bound.socket {
            Listening::Tcp(socket) if self.bound.is_shared => {
                SockRef::from(socket).attach_filter(&NO_BEGINNINGS)?;
                Ok(true)
            }
            // Nobody finds a Unix socket that has been replaced.
            Listening::Tcp(_) | Listening::Unix(..) => Ok(false),
        }
    }

    /// A connection that would be lost if the socket were closed now: one that waits in its queue, for us alone.
    pub(crate) fn accept_last(&self) -> Option<AcceptedSocket> {
        if !self.bound.is_ours() {
            return None;
        }
        match &self.bound.socket {
            Listening::Tcp(listener) => {
                let (socket, _) = listener.accept().ok()?;
                socket.set_nonblocking(true).ok()?;
                tcp(socket).ok()
            }
            Listening::Unix(listener, _) => {
                let (socket, _) = listener.accept().ok()?;
                socket.set_nonblocking(true).ok()?;
                Some(AcceptedSocket::Unix(socket))
            }
        }
    }
}

fn tcp(socket: std::net::TcpStream) -> io::Result<AcceptedSocket> {
    prepare(&socket)?;
    Ok(AcceptedSocket::Tcp(socket))
}

// === impl SocketFile ===

impl SocketFile {
    fn look(path: &Path) -> io::Result<Self> {
        let found = fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: found.st_dev(),
            inode: found.st_ino(),
        })
    }
}
