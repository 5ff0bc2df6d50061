//! `thalweg man`: the pages that `man` shows, from the command line's own definition.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Command, CommandFactory, ValueHint};

use super::Cli;

#[derive(Args, Debug)]
pub(super) struct Man {
    /// Write each page to a file of its own in this folder, and print nothing.
    #[arg(long, value_hint = ValueHint::DirPath)]
    dir: Option<PathBuf>,
}

/// A page, and the name of its file.
struct Page {
    name: String,
    roff: Vec<u8>,
}

// === impl Man ===

impl Man {
    /// Prints the pages one after another, or writes them to their files.
    pub(super) fn run(&self) -> ExitCode {
        let mut command = Cli::command();
        command.build();
        let mut pages = Vec::new();
        let written = render(&command, &mut pages).and_then(|()| match &self.dir {
            Some(dir) => write(dir, &pages),
            None => Ok(()),
        });
        match written {
            Ok(()) if self.dir.is_some() => ExitCode::SUCCESS,
            Ok(()) => {
                let all = pages.iter().map(|page| page.roff.as_slice());
                super::say(String::from_utf8_lossy(&all.collect::<Vec<_>>().concat()))
            }
            Err(error) => super::fail(&format!("cannot write the pages: {error}")),
        }
    }
}

/// The page of a command, and behind it those of the commands below it.
fn render(command: &Command, pages: &mut Vec<Page>) -> io::Result<()> {
    let man = clap_mangen::Man::new(command.clone());
    let mut roff = Vec::new();
    man.render(&mut roff)?;
    let name = man.get_filename();
    pages.push(Page { name, roff });
    (command.get_subcommands())
        .filter(|command| command.get_name() != "help")
        .try_for_each(|command| render(command, pages))
}

fn write(dir: &Path, pages: &[Page]) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    pages
        .iter()
        .try_for_each(|page| fs::write(dir.join(&page.name), &page.roff))
}
