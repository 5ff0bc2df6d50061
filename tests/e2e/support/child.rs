//! The proxy as a process of its own: for exit codes, signals, memory and limits of the system.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use tempfile::TempDir;
use thalweg::config::Address;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines},
    process::{self, ChildStderr, ChildStdout, Command},
};

use super::{
    operator::{Operator, Reply},
    within,
};

/// A directory with a configuration in it, which goes with the test.
pub(crate) struct Folder(TempDir);

/// What a process said, up to its end.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A proxy that runs. It is killed with the test.
pub(crate) struct Running {
    /// The listener.
    pub(crate) address: Address,
    pub(crate) operator: Operator,
    /// What it said before it listened.
    pub(crate) warnings: String,
    process: process::Child,
    stdout: Lines<BufReader<ChildStdout>>,
    stderr: Lines<BufReader<ChildStderr>>,
    folder: Folder,
}

// === impl Folder ===

impl Folder {
    /// With the file `config.yaml` in it.
    pub(crate) fn with(yaml: &str) -> Self {
        let folder = Self::empty();
        std::fs::write(folder.config(), yaml).unwrap();
        folder
    }

    pub(crate) fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path().join("config.yaml")
    }

    /// Runs the binary in this directory, to its end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Said {
        let mut command = binary();
        command.args(arguments);
        self.end_of(command).await
    }

    /// Runs a line of the shell in this directory, to its end.
    pub(crate) async fn shell(&self, line: &str) -> Said {
        let mut command = plain(Command::new("sh"));
        command.arg("-c").arg(line);
        self.end_of(command).await
    }

    async fn end_of(&self, mut command: Command) -> Said {
        let output = command.current_dir(self.path()).output();
        let output = within("the process ends", output).await.unwrap();
        Said {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The binary, without anything of the environment that would change what it does.
pub(crate) fn binary() -> Command {
    plain(Command::new(env!("CARGO_BIN_EXE_thalweg")))
}

fn plain(mut command: Command) -> Command {
    command
        .env_remove("THALWEG_CONFIG")
        .env_remove("THALWEG_LOG")
        .env_remove("THALWEG_ADDRESS")
        .env_remove("THALWEG_ADMIN")
        .env_remove("THALWEG_ADMIN_TOKEN")
        .env_remove("DAPR_API_TOKEN")
        .env_remove("NOTIFY_SOCKET")
        .env_remove("LISTEN_FDS")
        .env_remove("LISTEN_PID")
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

fn with_the_rest(yaml: &str) -> String {
    format!("admin: {{address: \"127.0.0.1:0\"}}\nworkers: 1\nfilters: [metrics]\n{yaml}")
}

// === impl Running ===

impl Running {
    /// With the keys of the configuration that a test cares for; the rest is one listener, one worker and the admin address.
    pub(crate) async fn start(yaml: &str) -> Self {
        Self::launch(binary(), &with_the_rest(yaml), true).await
    }

    /// With a configuration as it is written.
    pub(crate) async fn start_as_written(yaml: &str) -> Self {
        Self::launch(binary(), yaml, true).await
    }

    /// The same as `start`, with so many open files at most.
    pub(crate) async fn with_files(most: u32, yaml: &str) -> Self {
        let mut shell = plain(Command::new("sh"));
        shell
            .arg("-c")
            .arg(format!("ulimit -n {most} && exec \"$0\" \"$@\""))
            .arg(env!("CARGO_BIN_EXE_thalweg"));
        Self::launch(shell, &with_the_rest(yaml), true).await
    }

    /// With a configuration as it is written, and with a listening socket that somebody else has bound, as a supervisor hands
    /// it over.
    pub(crate) async fn handed(socket: OwnedFd, yaml: &str) -> Self {
        let mut shell = plain(Command::new("sh"));
        // Only the process itself knows its number before it runs.
        shell
            .arg("-c")
            .arg("exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\"")
            .arg(env!("CARGO_BIN_EXE_thalweg"))
            .stdin(socket);
        Self::launch(shell, yaml, true).await
    }

    /// With a configuration as it is written; it tells how far it is on the socket at this path.
    pub(crate) async fn notifying(path: &Path, yaml: &str) -> Self {
        let mut command = binary();
        command.env("NOTIFY_SOCKET", path);
        Self::launch(command, yaml, true).await
    }

    /// The same as `start`, started as `thalweg`, and no more said, in the folder of its configuration.
    pub(crate) async fn without_arguments(yaml: &str) -> Self {
        Self::launch(binary(), &with_the_rest(yaml), false).await
    }

    async fn launch(mut command: Command, yaml: &str, told: bool) -> Self {
        let folder = Folder::with(yaml);
        if told {
            command.arg("--config").arg(folder.config());
        }
        let mut process = command.current_dir(folder.path()).spawn().unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut stderr = BufReader::new(process.stderr.take().unwrap()).lines();
        let (warnings, listening) = until_after(&mut stderr, "address=").await;
        let (_, address) = listening.split_once("address=").unwrap();
        let admin = until(&mut stderr, "admin on http://").await;
        let (_, admin) = admin.split_once("http://").unwrap();
        let (admin, _) = admin.split_once(": ").unwrap();
        let address = address.trim();
        Self {
            address: match address.strip_prefix("unix:") {
                Some(path) => Address::Unix(path.into()),
                None => Address::Tcp(address.parse().unwrap()),
            },
            operator: Operator(admin.parse().unwrap()),
            warnings,
            process,
            stdout,
            stderr,
            folder,
        }
    }

    /// Changes its configuration's file, as an editor does that replaces it by another, and no more.
    pub(crate) fn write(&self, yaml: &str) {
        let next = self.folder.path().join("next.yaml");
        std::fs::write(&next, with_the_rest(yaml)).unwrap();
        std::fs::rename(next, self.folder.config()).unwrap();
    }

    /// Changes its configuration's file, and asks for a reload.
    pub(crate) async fn reload(&self, yaml: &str) -> Reply {
        self.write(yaml);
        self.operator.ask("POST", "/reload", "").await
    }

    /// Waits until it has said a line with these words.
    pub(crate) async fn says(&mut self, words: &str) -> String {
        until(&mut self.stderr, words).await
    }

    /// Waits until it has said a line with these words to people, and returns all lines that it has said to them.
    pub(crate) async fn welcomes(&mut self, words: &str) -> Vec<String> {
        within(&format!("people are told `{words}`"), async {
            let mut lines = Vec::new();
            while !lines
                .last()
                .is_some_and(|line: &String| line.contains(words))
            {
                lines.push(self.stdout.next_line().await.unwrap().unwrap());
            }
            lines
        })
        .await
    }

    /// Sends a signal: `TERM`, `INT`, `HUP`.
    pub(crate) async fn signal(&self, name: &str) {
        send_signal(&self.process, name).await;
    }

    /// Waits for its end.
    pub(crate) async fn ends(mut self) -> (ExitStatus, String) {
        let status = within("the process ends", self.process.wait()).await;
        let mut rest = String::new();
        self.stderr
            .into_inner()
            .read_to_string(&mut rest)
            .await
            .unwrap();
        (status.unwrap(), rest)
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    /// Bytes of memory that it occupies now.
    pub(crate) fn memory(&self) -> usize {
        let id = self.process.id().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
        kib.parse::<usize>().unwrap() * 1024
    }
}

/// Sends a signal to a process: `TERM`, `INT`.
pub(crate) async fn send_signal(process: &process::Child, name: &str) {
    let id = process.id().unwrap();
    // The shell's own `kill`: there may be no other.
    let kill = Command::new("sh")
        .arg("-c")
        .arg(format!("kill -{name} {id}"))
        .status();
    assert!(within("the signal is sent", kill).await.unwrap().success());
}

async fn until(stderr: &mut Lines<BufReader<ChildStderr>>, words: &str) -> String {
    until_after(stderr, words).await.1
}

/// All that it said before, and the line.
async fn until_after(stderr: &mut Lines<BufReader<ChildStderr>>, words: &str) -> (String, String) {
    let mut before = String::new();
    within(&format!("the process says `{words}`"), async {
        while let Some(line) = stderr.next_line().await.unwrap() {
            if line.contains(words) {
                return (before, line);
            }
            before.push_str(&line);
            before.push('\n');
        }
        panic!("the process ended without a word of `{words}`, after:\n{before}");
    })
    .await
}
