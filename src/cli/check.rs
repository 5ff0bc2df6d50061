//! `thalweg check`: whether a configuration is good, what it does, and what in it is worth a second look.

use std::{
    fmt, io,
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, ValueHint};
use serde_json::{Value, json};

use super::{CONFIG, REFUSED, STDIO, no_config, say};
use crate::{
    config::{
        self, Address, AuthorityMatch, BindingTarget, Config, Destination, Endpoints, Faults,
        Match, PathMatch, Place, Protocol, Route, Unusable,
    },
    router::covers,
};

/// Say whether a configuration is good and what it does; or else all that is wrong with it.
#[derive(Args, Debug)]
pub(super) struct Check {
    /// The file to read; `-` is standard input. Default: config.yaml.
    #[arg(value_hint = ValueHint::FilePath)]
    file: Option<PathBuf>,
    /// The same, as the proxy itself is told.
    #[arg(short, long, env = "THALWEG_CONFIG", value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
    /// Say it as JSON, for editors and scripts.
    #[arg(long)]
    json: bool,
}

/// What a good file says, one line for each thing.
struct Summary<'a> {
    file: &'a Path,
    config: &'a Config,
}

// === impl Check ===

impl Check {
    pub(super) fn run(self) -> ExitCode {
        // Whoever writes the name behind the command means it, whatever the environment says.
        let file = match self.file.or(self.config) {
            Some(file) => file,
            None if Path::new(CONFIG).exists() => CONFIG.into(),
            None => return no_config(),
        };
        let (name, config) = if file == Path::new(STDIO) {
            let name = "standard input".to_owned();
            let config = config::load_from(&mut io::stdin().lock(), &name);
            (name, config)
        } else {
            (file.display().to_string(), config::load(&file))
        };
        let checked = config.and_then(|config| match unusable(&config) {
            faults if faults.is_empty() => Ok(config),
            faults => Err(Faults::beside_the_text(name, faults)),
        });
        match (checked, self.json) {
            (Ok(config), false) => say(Summary {
                file: &file,
                config: &config,
            }),
            (Ok(config), true) => say(format_args!(
                "{:#}\n",
                json!({"good": true, "faults": [], "warnings": warnings(&config)})
            )),
            (Err(faults), false) => {
                eprintln!("{faults}");
                ExitCode::from(REFUSED)
            }
            (Err(faults), true) => {
                say(format_args!(
                    "{:#}\n",
                    json!({"good": false, "faults": faults.to_json(), "warnings": []})
                ));
                ExitCode::from(REFUSED)
            }
        }
    }
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, config } = self;
        writeln!(
            f,
            "{}: good ({}, {}, {}, {})",
            file.display(),
            count(config.listeners.len(), "listener"),
            count(config.bindings.len(), "binding"),
            count(config.routes.len(), "route"),
            count(config.clusters.len(), "cluster")
        )?;
        let sections = [
            ("listeners", listeners(config)),
            ("bindings", bindings(config)),
            ("routes", config.routes.iter().map(route).collect()),
        ];
        for (title, lines) in sections {
            let width = lines.iter().map(|(name, _)| name.chars().count()).max();
            for (index, (name, what)) in lines.iter().enumerate() {
                if index == 0 {
                    writeln!(f, "\n{title}")?;
                }
                writeln!(f, "  {name:0$}   {what}", width.unwrap_or_default())?;
            }
        }
        for (index, warning) in warnings(config).iter().enumerate() {
            if index == 0 {
                writeln!(f, "\nworth a look")?;
            }
            // Those of the configuration show its lines.
            writeln!(f, "  {}", warning.replace('\n', "\n  "))?;
        }
        Ok(())
    }
}

/// What the file names and the proxy could not use, as it would find when it starts. Nothing of it is changed.
fn unusable(config: &Config) -> Vec<Unusable> {
    let clusters = config.clusters.iter().filter_map(|cluster| {
        let Endpoints::File { path, .. } = &cluster.endpoints else {
            return None;
        };
        let name = path.display().to_string();
        let (message, help) = match std::fs::read_to_string(path) {
            Ok(text) => {
                let faults = config::endpoints(&text, &name).err()?;
                (faults.to_string(), "")
            }
            Err(error) => (
                format!("{name}: {error}"),
                "the list of endpoints must be there, and the proxy be allowed to read it",
            ),
        };
        Some(Unusable {
            path: format!("clusters.{}.endpoints.file", cluster.name),
            message,
            help,
        })
    });
    let bindings = config.bindings.iter().filter_map(|binding| {
        let BindingTarget::ObjectStore(store) = &binding.target else {
            return None;
        };
        let Place::Files(folder) = &store.place else {
            return None;
        };
        let error = writable(folder).err()?;
        Some(Unusable {
            path: format!("bindings.{}.object_store.url", binding.name),
            message: format!("{}: {error}", folder.display()),
            help: "the folder, or the one that it is made in, must be there and let the proxy write",
        })
    });
    clusters.chain(bindings).collect()
}

/// Whether files can be made in a folder, or in the nearest one above it that is there.
fn writable(folder: &Path) -> io::Result<()> {
    let mut above = (folder.ancestors()).filter(|above| !above.as_os_str().is_empty());
    let nearest = above.find(|above| above.exists());
    let nearest = nearest.unwrap_or_else(|| Path::new("."));
    // The modes of a folder do not tell of what it is on: only a file does.
    let probe = nearest.join(format!(".thalweg-check-{}", std::process::id()));
    std::fs::File::create_new(&probe)?;
    std::fs::remove_file(&probe)
}

fn count(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

/// A name, and what is said of it.
type Line = (String, String);

fn listeners(config: &Config) -> Vec<Line> {
    let listeners = config.listeners.iter();
    let admin = config.admin.iter();
    listeners
        .map(|listener| (listener.name.clone(), listener.address.to_string()))
        .chain(admin.map(|admin| {
            (
                "admin".into(),
                format!("{} (the operator's)", admin.address),
            )
        }))
        .collect()
}

fn bindings(config: &Config) -> Vec<Line> {
    let shown = config.to_json();
    let bindings = config.bindings.iter();
    let sockets = config.component_sockets.iter();
    bindings
        .map(|binding| {
            let (kind, settings) = target(&shown["bindings"][&binding.name]);
            let place = ["url", "socket", "address", "cluster"]
                .iter()
                .find_map(|key| settings[key].as_str());
            let what = match place {
                Some(place) => format!("{kind} {place}"),
                None => kind.to_owned(),
            };
            (binding.name.clone(), what)
        })
        .chain(sockets.map(|sockets| {
            let folder = sockets.folder.display();
            (
                "...".into(),
                format!("component, for each socket in {folder}"),
            )
        }))
        .collect()
}

/// The kind of a binding's target and its settings, from the binding as it is shown: there, secrets are hidden already.
fn target(binding: &Value) -> (&str, &Value) {
    const BESIDE: [&str; 4] = ["buffer", "resiliency", "timeouts", "filters"];
    let keys = binding.as_object().into_iter().flatten();
    keys.map(|(key, settings)| (key.as_str(), settings))
        .find(|(key, _)| !BESIDE.contains(key))
        .unwrap_or(("", &Value::Null))
}

fn route(route: &Route) -> Line {
    let whereto = match &route.destination {
        Destination::RoutesBelow => "on to the routes below".into(),
        Destination::Clusters(targets) => {
            let weighted = targets.len() > 1;
            let clusters = targets.iter().map(|target| {
                let share = if weighted {
                    format!("{} of ", target.weight)
                } else {
                    String::new()
                };
                format!(
                    "{share}{} ({})",
                    target.cluster.name, target.cluster.endpoints
                )
            });
            clusters.collect::<Vec<_>>().join(" and ")
        }
    };
    let what = format!("{}: {whereto}", conditions(&route.matches));
    (route.name.clone(), what)
}

/// What a stream must look like, in a few words.
pub(super) fn conditions(matches: &Match) -> String {
    let mut words = Vec::new();
    words.extend(matches.path.as_ref().map(|path| match path {
        PathMatch::Exact(path) => path.clone(),
        PathMatch::Prefix(path) => format!("{path}*"),
        PathMatch::Service { service, method } => {
            format!("/{service}/{}", method.as_deref().unwrap_or("*"))
        }
    }));
    words.extend(matches.authority.as_ref().map(|authority| match authority {
        AuthorityMatch::Exact(name) => format!("host {name}"),
        AuthorityMatch::Suffix(suffix) => format!("host *{suffix}"),
        AuthorityMatch::Any => "any host".into(),
    }));
    let headers = matches.headers.iter();
    words.extend(headers.map(|(name, value)| {
        let value = String::from_utf8_lossy(value.as_bytes());
        format!("{name}: {value}")
    }));
    if words.is_empty() {
        return "every stream".into();
    }
    words.join(", ")
}

/// What is allowed, and most often not meant.
fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = config.warnings.clone();
    if config.admin.is_none() {
        warnings.push(
            "admin.address is none: nobody can read metrics, or ask whether it is ready".into(),
        );
    }
    if config.routes.is_empty() && config.bindings.is_empty() && config.component_sockets.is_none()
    {
        warnings.push("there are no bindings and no routes: every stream is refused".into());
    }
    for (index, later) in config.routes.iter().enumerate() {
        let taken = config.routes[..index].iter().find(|earlier| {
            // One that sends its streams on has them matched again.
            matches!(earlier.destination, Destination::Clusters(_))
                && covers(&earlier.matches, &later.matches)
        });
        warnings.extend(taken.map(|earlier| {
            format!(
                "route {} is never taken: {}, above it, takes every stream that it would",
                later.name, earlier.name
            )
        }));
    }
    for route in &config.routes {
        let Destination::Clusters(targets) = &route.destination else {
            continue;
        };
        let plain = (targets.iter()).find(|target| target.cluster.protocol == Protocol::Http1);
        let reader = route.filters.iter().find(|filter| filter.reads_messages());
        if let (Some(target), Some(filter)) = (plain, reader) {
            warnings.push(format!(
                "route {} refuses every stream to {}: {} takes gRPC alone, and an HTTP/1.1 cluster cannot carry it; give the route filters of its own",
                route.name,
                target.cluster.name,
                filter.name()
            ));
        }
    }
    warnings.extend(circles(config));
    for cluster in &config.clusters {
        let by_route = config.routes.iter().any(|route| match &route.destination {
            Destination::Clusters(targets) => targets
                .iter()
                .any(|target| target.cluster.name == cluster.name),
            Destination::RoutesBelow => false,
        });
        let by_binding = config.bindings.iter().any(|binding| {
            matches!(&binding.target, BindingTarget::Dapr { cluster: used } if used.name == cluster.name)
        });
        if !by_route && !by_binding {
            warnings.push(format!(
                "cluster {} is not used by any route or binding",
                cluster.name
            ));
        }
    }
    warnings
}

/// Clusters that lead back to a listener of the same file.
fn circles(config: &Config) -> Vec<String> {
    let of_bindings = config.bindings.iter().filter_map(|binding| {
        let cluster = match &binding.target {
            BindingTarget::Http(target) => &target.cluster,
            BindingTarget::Component(component) => &component.cluster,
            BindingTarget::ObjectStore(_) | BindingTarget::Echo | BindingTarget::Dapr { .. } => {
                return None;
            }
        };
        Some(cluster)
    });
    let clusters = config.clusters.iter().chain(of_bindings);
    let endpoints = clusters.flat_map(|cluster| {
        let addresses: Vec<Address> = match &cluster.endpoints {
            Endpoints::Listed(endpoints) => (endpoints.iter())
                .map(|endpoint| endpoint.address.clone())
                .collect(),
            Endpoints::Dns { host, port, .. } => vec![Address::Host(host.clone(), *port)],
            Endpoints::File { .. } => Vec::new(),
        };
        addresses
            .into_iter()
            .map(|address| (&cluster.label, address))
    });
    let mut circles = Vec::new();
    for (label, address) in endpoints {
        let mut listeners = config.listeners.iter();
        let own = listeners.find(|listener| answers(&listener.address, &address));
        circles.extend(own.map(|listener| {
            format!(
                "{label} leads to {address}, where the listener {} of this file listens: its streams may go in a circle",
                listener.name
            )
        }));
    }
    circles
}

/// Whether whoever dials an address on this machine comes to a listener.
fn answers(listener: &Address, dialled: &Address) -> bool {
    let here = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
    match (listener, dialled) {
        (Address::Tcp(listener), Address::Tcp(dialled)) => {
            let (ip, dialled_ip) = (listener.ip().to_canonical(), dialled.ip().to_canonical());
            // `[::]` takes IPv4, too.
            let same_family = ip.is_ipv6() || dialled_ip.is_ipv4();
            listener.port() == dialled.port()
                && (ip == dialled_ip
                    || same_family && here(ip) && dialled_ip.is_unspecified()
                    || same_family && ip.is_unspecified() && here(dialled_ip))
        }
        (Address::Tcp(listener), Address::Host(name, port)) => {
            let ip = listener.ip();
            let named = match name.parse::<IpAddr>() {
                Ok(named) => named == ip || ip.is_unspecified() && named.is_loopback(),
                Err(_) => here(ip) && name.eq_ignore_ascii_case("localhost"),
            };
            named && listener.port() == *port
        }
        (listener, dialled) => listener == dialled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_where_a_listener_listens_is_found() {
        let found = |listener: &str, dialled: &str| {
            let listener = listener.parse().unwrap();
            let dialled = match dialled.strip_prefix("name:") {
                Some(port) => Address::Host("LocalHost".into(), port.parse().unwrap()),
                None => dialled.parse().unwrap(),
            };
            answers(&listener, &dialled)
        };

        for (listener, dialled) in [
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            ("127.0.0.1:8080", "localhost:8080"),
            ("127.0.0.1:8080", "0.0.0.0:8080"),
            ("0.0.0.0:8080", "127.0.0.1:8080"),
            ("0.0.0.0:8080", "0.0.0.0:8080"),
            ("[::]:8080", "[::1]:8080"),
            ("[::]:8080", "127.0.0.1:8080"),
            ("10.0.0.1:8080", "10.0.0.1:8080"),
            ("0.0.0.0:8080", "name:8080"),
            ("[::1]:8080", "name:8080"),
            ("unix:/run/it.sock", "unix:/run/it.sock"),
        ] {
            assert!(found(listener, dialled), "{listener} {dialled}");
        }
        for (listener, dialled) in [
            ("127.0.0.1:8080", "127.0.0.1:8081"),
            ("127.0.0.1:8080", "127.0.0.2:8080"),
            ("127.0.0.1:8080", "[::1]:8080"),
            ("0.0.0.0:8080", "[::1]:8080"),
            ("0.0.0.0:8080", "10.0.0.1:8080"),
            ("10.0.0.1:8080", "name:8080"),
            ("unix:/run/it.sock", "unix:/run/other.sock"),
            ("unix:/run/it.sock", "127.0.0.1:8080"),
        ] {
            assert!(!found(listener, dialled), "{listener} {dialled}");
        }
    }
}
