//! How a command that asks a server ends, for scripts and for people.
//!
//! The codes are those of `sysexits.h`, so that a script can tell a fault of its own from one that goes away when it tries again;
//! and where a signal would have ended it, those that a shell gives to signals.

use std::{fmt, io, process::ExitCode};

use thalweg_proto::Code;

/// Why a command failed: the code for scripts, and words for people.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    class: Class,
    message: String,
    /// What to do about it.
    hint: Option<String>,
}

/// What kind of failure it is; the number is the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Class {
    /// What was given on the command line cannot be used.
    Usage = 64,
    /// The server refuses the request as it is.
    BadRequest = 65,
    /// The input cannot be read, or there is no such binding or object.
    NoInput = 66,
    /// The server cannot be reached, or what stands behind it.
    Unavailable = 69,
    /// Something is broken at the server.
    Broken = 70,
    /// The output cannot be written.
    NoOutput = 73,
    /// Trying again may help.
    TryAgain = 75,
    /// The peer does not keep to the protocol, or broke off.
    Protocol = 76,
    /// Somebody is not trusted, or is not allowed to.
    NoPermission = 77,
    /// SIGINT, as by Ctrl-C.
    Interrupted = 130,
    /// SIGPIPE: whoever read standard output has left.
    BrokenPipe = 141,
    /// SIGTERM.
    Terminated = 143,
}

/// Runs a command to its end.
pub(super) fn run(command: impl Future<Output = Result<(), Failure>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(command);
            // Not dropped, which would wait for a read of standard input that may never end.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(Failure::new(
            Class::Broken,
            format!("cannot start: {error}"),
        )),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.tell(),
    }
}

/// What others have written, fit for a terminal: what would steer it is shown and not done.
pub(super) fn visible(text: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => visible.extend(character.escape_default()),
            false => visible.push(character),
        }
    }
    visible
}

// === impl Failure ===

impl Failure {
    pub(super) fn new(class: Class, message: impl Into<String>) -> Self {
        Self {
            class,
            message: message.into(),
            hint: None,
        }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What kept bytes from being written.
    pub(super) fn of_output(name: &str, error: &io::Error) -> Self {
        let class = match error.kind() {
            io::ErrorKind::BrokenPipe => Class::BrokenPipe,
            _ => Class::NoOutput,
        };
        Self::new(class, format!("{name} cannot be written: {error}"))
    }

    /// Says it on standard error, and is the exit code. Whoever sent a signal knows why.
    fn tell(&self) -> ExitCode {
        if self.class as u8 <= 128 {
            eprintln!("thalweg: {}", visible(&self.message));
            if let Some(hint) = &self.hint {
                eprintln!("{hint}");
            }
        }
        ExitCode::from(self.class as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

// === impl Class ===

impl Class {
    /// Of an answer with this gRPC status.
    pub(super) fn of_code(code: Code) -> Self {
        match code {
            Code::InvalidArgument
            | Code::OutOfRange
            | Code::FailedPrecondition
            | Code::AlreadyExists => Self::BadRequest,
            Code::NotFound => Self::NoInput,
            Code::Unavailable => Self::Unavailable,
            Code::DeadlineExceeded | Code::ResourceExhausted | Code::Aborted => Self::TryAgain,
            Code::Unauthenticated | Code::PermissionDenied => Self::NoPermission,
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::Unimplemented
            | Code::Internal
            | Code::DataLoss => Self::Broken,
        }
    }

    /// Of a stream that was reset with this code of HTTP/2. A reset says little; what it says of trying again is kept.
    pub(super) fn of_reset(reason: u32) -> Self {
        match Code::from_reset(reason) {
            code @ (Code::Unavailable | Code::ResourceExhausted | Code::PermissionDenied) => {
                Self::of_code(code)
            }
            _ => Self::Protocol,
        }
    }

    /// Of an answer with this HTTP status.
    pub(super) fn of_status(status: u16) -> Self {
        match status {
            401 | 403 | 407 => Self::NoPermission,
            404 | 410 => Self::NoInput,
            408 | 413 | 429 | 431 | 504 => Self::TryAgain,
            400..=499 => Self::BadRequest,
            502 | 503 => Self::Unavailable,
            _ => Self::Broken,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_transports_exit_alike() {
        for code in Code::ALL {
            // Of these, HTTP has one status for two, or none.
            if matches!(
                code,
                Code::Ok | Code::Cancelled | Code::Aborted | Code::Unimplemented
            ) {
                continue;
            }
            assert_eq!(
                Class::of_status(code.to_http()),
                Class::of_code(code),
                "{code}"
            );
        }
    }
}
