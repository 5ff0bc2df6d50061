//! One measurement: one workload through one running proxy.
//!
//! **How.** The load generator is started and warms up; then the proxy's processor time is read, the load runs, and it
//! is read again. Memory is read before and after, with all streams of the idle workloads still open.

use std::env;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::time::{sleep, timeout};

use crate::grpc::Failure;
use crate::load::Report;
use crate::process::{self, Memory};
use crate::proxy::Running;
use crate::work::Work;

/// Before memory is read: what the proxy frees a moment later should not count.
const SETTLE: Duration = Duration::from_millis(300);

/// What a workload cost the proxy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measurement {
    pub(crate) report: Report,
    pub(crate) cpu: Duration,
    pub(crate) before: Memory,
    pub(crate) after: Memory,
}

/// Runs `work` through `proxy`, within the workload's time limit.
pub(crate) async fn measure(
    proxy: &mut Running,
    work: Work,
    scale: f64,
) -> Result<Measurement, Failure> {
    let limit = work.time_limit(scale);
    let result = match timeout(limit, run(proxy, work, scale)).await {
        Ok(result) => result,
        Err(_) => Err(format!("not done after {limit:?}").into()),
    };
    match (result, proxy.epitaph()) {
        (Err(_), Some(epitaph)) => Err(epitaph.into()),
        (result, _) => result,
    }
}

async fn run(proxy: &Running, work: Work, scale: f64) -> Result<Measurement, Failure> {
    let mut load = process::command(env::current_exe()?);
    load.arg("load")
        .arg(proxy.address().to_string())
        .arg(work.name())
        .arg(scale.to_string());
    if let Some(certificate) = proxy.certificate() {
        load.arg("--certificate").arg(certificate);
    }
    let mut load = load
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut commands = load.stdin.take().ok_or("the load generator has no input")?;
    let output = load
        .stdout
        .take()
        .ok_or("the load generator has no output")?;
    let errors = load
        .stderr
        .take()
        .ok_or("the load generator has no errors")?;
    let mut output = BufReader::new(output).lines();

    let measured = async {
        let silent = "the load generator has ended";
        output.next_line().await?.ok_or(silent)?;
        if work.is_idle() {
            sleep(SETTLE).await;
        }
        let before = process::memory(proxy.pid()?)?;
        let cpu_before = process::cpu_time(proxy.pid()?)?;
        commands.write_all(b"go\n").await?;
        let report = output.next_line().await?.ok_or(silent)?.parse()?;
        let cpu = process::cpu_time(proxy.pid()?)?.saturating_sub(cpu_before);
        if work.is_idle() || work.is_storm() {
            sleep(SETTLE).await;
        }
        let after = process::memory(proxy.pid()?)?;
        Ok(Measurement {
            report,
            cpu,
            before,
            after,
        })
    }
    .await;

    drop(commands);
    if measured.is_err() {
        // Why is known to the load generator; a load generator that says nothing did not fail by itself.
        let line = timeout(SETTLE, BufReader::new(errors).lines().next_line()).await;
        if let Ok(Ok(Some(line))) = line {
            process::end(load).await;
            return Err(line.into());
        }
    }
    process::end(load).await;
    measured
}
