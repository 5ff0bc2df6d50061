//! `thalweg certs`: certificates to try TLS with. They are for development: their authority's key lies beside them.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

use super::{fail, say};

/// The authority is good for longer than what it signs.
const AUTHORITY_DAYS: i64 = 3650;
/// What clients of every kind still accept.
const DAYS: i64 = 365;

/// Everybody may read a certificate, and only its owner a key.
const PUBLIC: u32 = 0o644;
const SECRET: u32 = 0o600;

#[derive(Args, Debug)]
pub(super) struct Certs {
    /// The folder to write to. It is made if it is not there.
    #[arg(long, default_value = "tls")]
    dir: PathBuf,
    /// Host names and IP addresses of the server; `*.` stands for one label.
    #[arg(long = "name", num_args = 1.., default_values = ["localhost", "127.0.0.1", "::1"])]
    names: Vec<String>,
    /// Replace files that are there.
    #[arg(long)]
    force: bool,
}

/// A file of the set: its name, what it holds, and who may read it.
type Made = (&'static str, String, u32);

// === impl Certs ===

impl Certs {
    /// Makes them, and says what to do with them.
    pub(super) fn run(self) -> ExitCode {
        if let Some(name) = self.names.iter().find(|name| !is_name(name)) {
            return fail(&format!(
                "`{name}` is no host: a name has letters, digits, `-` and dots, and may begin with `*.`; or write an IP address"
            ));
        }
        let made = match make(&self.names) {
            Ok(made) => made,
            Err(error) => return fail(&format!("cannot make certificates: {error}")),
        };
        match write(&self.dir, &made, self.force) {
            Ok(()) => say(advice(&self.dir, &self.names)),
            Err((file, error)) => {
                let mut message = format!("cannot write {}: {error}", file.display());
                if error.kind() == io::ErrorKind::AlreadyExists {
                    message.push_str(
                        "\n  = help: nothing was changed; `--force` replaces the files, `--dir` names another folder",
                    );
                }
                fail(&message)
            }
        }
    }
}

/// Whether clients can ask for it.
fn is_name(name: &str) -> bool {
    let is_label = |label: &str| {
        let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        (1..=63).contains(&label.len())
            && label.bytes().all(is_inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let host = name.strip_prefix("*.").unwrap_or(name);
    name.parse::<IpAddr>().is_ok() || host.len() <= 253 && host.split('.').all(is_label)
}

fn make(names: &[String]) -> Result<[Made; 6], rcgen::Error> {
    let mut params = CertificateParams::default();
    dated(&mut params, AUTHORITY_DAYS);
    named(&mut params, "Thalweg development CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?.pem();
    let authority = Issuer::new(params, key);

    let mut server = CertificateParams::new(names)?;
    named(&mut server, &names[0]);
    let (server, server_key) = signed(server, ExtendedKeyUsagePurpose::ServerAuth, &authority)?;
    let mut client = CertificateParams::default();
    named(&mut client, "client");
    let id = "spiffe://thalweg.test/client".try_into()?;
    client.subject_alt_names = vec![SanType::URI(id)];
    let (client, client_key) = signed(client, ExtendedKeyUsagePurpose::ClientAuth, &authority)?;
    Ok([
        ("ca.pem", certificate, PUBLIC),
        ("ca.key", authority.key().serialize_pem(), SECRET),
        ("server.pem", server, PUBLIC),
        ("server.key", server_key, SECRET),
        ("client.pem", client, PUBLIC),
        ("client.key", client_key, SECRET),
    ])
}

fn signed(
    mut params: CertificateParams,
    usage: ExtendedKeyUsagePurpose,
    authority: &Issuer<'_, KeyPair>,
) -> Result<(String, String), rcgen::Error> {
    dated(&mut params, DAYS);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, authority)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn named(params: &mut CertificateParams, name: &str) {
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
}

/// From a little before now, for clocks that differ.
fn dated(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::hours(1);
    params.not_after = now + Duration::days(days);
}

/// Writes all or, if one is there that may not be replaced, none.
fn write(dir: &Path, made: &[Made], force: bool) -> Result<(), (PathBuf, io::Error)> {
    std::fs::create_dir_all(dir).map_err(|error| (dir.to_owned(), error))?;
    if !force
        && let Some(taken) = made
            .iter()
            .map(|(name, ..)| dir.join(name))
            .find(|it| it.exists())
    {
        return Err((taken, io::ErrorKind::AlreadyExists.into()));
    }
    for (name, text, mode) in made {
        // Under another name first, so that who reads the file meets the old one or the new one, whole.
        let (file, draft) = (dir.join(name), dir.join(format!(".{name}.new")));
        let written = replace(&file, &draft, text, *mode);
        written.map_err(|error| (file, error))?;
    }
    Ok(())
}

fn replace(file: &Path, draft: &Path, text: &str, mode: u32) -> io::Result<()> {
    match std::fs::remove_file(draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(draft)?
        .write_all(text.as_bytes())?;
    std::fs::rename(draft, file)
}

fn advice(dir: &Path, names: &[String]) -> String {
    let (dir, name) = (dir.display(), &names[0]);
    format!(
        "Wrote a development CA and a pair for the server and for a client to {dir}.

In the configuration, below the listener:

    tls:
      certificates: [{{cert: {dir}/server.pem, key: {dir}/server.key}}]
      client_ca: {dir}/ca.pem    # asks clients for a certificate; leave it out for anybody

A client, at the listener's port:

    curl --cacert {dir}/ca.pem --cert {dir}/client.pem --key {dir}/client.key https://{name}:PORT/
"
    )
}
