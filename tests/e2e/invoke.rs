//! What `thalweg invoke` and `thalweg bindings` promise to those who type them.
//!
//! | file | what it promises |
//! |---|---|
//! | `calls` | what reaches the binding, and what comes back |
//! | `endings` | exit codes, words, and what is left of an answer that was cut |
//! | `tls` | whom it trusts, and how it proves itself |
//! | `list` | the list of bindings |

use std::{fmt::Display, process::Stdio};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use crate::support::{
    child::{Said, binary, send_signal},
    within,
};

mod calls;
mod endings;
mod list;
mod tls;

/// Both transports, as the command line names them.
const TRANSPORTS: [&[&str]; 2] = [&[], &["--http"]];

/// A command that runs. It is killed with the test.
struct Client {
    process: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
}

/// `thalweg invoke` at an address, with nothing to read and everything it says kept.
fn invoke(address: &impl Display, arguments: &[&str]) -> Command {
    let address = address.to_string();
    let mut command = binary();
    command.arg("invoke").args(arguments).arg("--address");
    match address.contains(':') && (address.contains("://") || address.starts_with("unix:")) {
        true => command.arg(address),
        false => command.arg(format!("http://{address}")),
    };
    command
}

/// Runs a command to its end.
async fn run(mut command: Command) -> Said {
    said(within("the command ends", command.output()).await.unwrap())
}

fn said(output: std::process::Output) -> Said {
    Said {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

// === impl Client ===

impl Client {
    /// Starts a command whose standard input and output are the test's.
    fn start(mut command: Command) -> Self {
        let mut process = command.stdin(Stdio::piped()).spawn().unwrap();
        Self {
            stdin: process.stdin.take(),
            stdout: process.stdout.take(),
            process,
        }
    }

    async fn write(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().unwrap();
        within("the command reads", stdin.write_all(bytes))
            .await
            .unwrap();
    }

    /// The next so many bytes of its standard output.
    async fn read(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let stdout = self.stdout.as_mut().unwrap();
        within("the command writes", stdout.read_exact(&mut bytes))
            .await
            .unwrap();
        bytes
    }

    /// Writes bytes, and meanwhile reads as many.
    async fn exchange(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut received = vec![0; bytes.len()];
        let stdin = self.stdin.as_mut().unwrap();
        let stdout = self.stdout.as_mut().unwrap();
        let both = async { tokio::join!(stdin.write_all(bytes), stdout.read_exact(&mut received)) };
        let (written, read) = within("the command reads and writes", both).await;
        written.unwrap();
        read.unwrap();
        received
    }

    async fn signal(&self, name: &str) {
        send_signal(&self.process, name).await;
    }

    /// The most memory that it has ever occupied, in bytes.
    fn peak(&self) -> usize {
        let id = self.process.id().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
        kib.parse::<usize>().unwrap() * 1024
    }

    /// Ends its input and waits for its end; `stdout` is what was not read yet.
    async fn ends(mut self) -> Said {
        drop(self.stdin.take());
        self.process.stdout = self.stdout.take();
        let output = self.process.wait_with_output();
        said(within("the command ends", output).await.unwrap())
    }
}
