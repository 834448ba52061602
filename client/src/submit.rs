//! Submitting a job: everything that can be wrong is found before anything is changed.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use job_file::{JobFile, Problem};
use serde_json::json;
use types::{AppId, Artefact, Delivery, Given, JobSpec, SYSTEM_SECRETS, SystemKind, SystemSpec};

use crate::args::{Common, Format};
use crate::failure::{Code, Failure};
use crate::output::{Progress, bytes, duration, print, print_json, say};
use crate::package::{self, Found, Package};
use crate::resource_manager::{ResourceManager, Submission};
use crate::wait::{Goal, wait};
use crate::{brokers, tables, topics};

/// What a submission is told on the command line.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The job file.
    pub job_file: &'a Path,
    /// Only look, without a cluster.
    pub check: bool,
    /// Wait until it runs.
    pub wait: bool,
    /// How long to wait at most.
    pub timeout: Option<Duration>,
    /// Roll a live job of the same name.
    pub replace: bool,
    /// Do not ask Kafka whether it is there.
    pub skip_broker_check: bool,
}

/// Runs `samza-submit`.
///
/// # Errors
/// See [`Code`]; nothing has been changed unless the resource manager accepted the job.
pub async fn submit(common: &Common, request: &Request<'_>) -> Result<(), Failure> {
    let file = package::read_job_file(request.job_file)?;
    let found = package::find(&file, request.job_file)?;
    let secrets = package::secrets(&file, request.job_file)?;
    if request.check {
        return check(common, &file, &found);
    }
    if let Some(told) = only_local(&file) {
        return Err(Failure::new(Code::BadJobFile, told.to_string()));
    }
    if !request.skip_broker_check {
        brokers::check(&file, &secrets).await?;
        topics::check(&file, &secrets).await?;
    }
    let mut rm = ResourceManager::connect(common).await?;
    if !request.replace {
        refuse_if_live(&mut rm, &file).await?;
    }
    let mut spec = file.spec.clone();
    if let Found::Here(package) = &found {
        spec.package.artefact = Some(upload(&mut rm, package).await?);
    }
    let submission = Submission { spec: &spec, secrets: &secrets, replace: request.replace };
    let app = hand_in(&mut rm, &file, &submission).await?;
    match common.output {
        Format::Table => print(&format!("{app}\n"))?,
        Format::Json => print_json(
            &json!({ "app": app, "job": spec.job.to_string(), "artefact": spec.package.artefact }),
        )?,
    }
    if !request.wait {
        say(&format!("{} is accepted; follow it with `samza status {}`", spec.job, spec.job));
        return Ok(());
    }
    wait(&mut rm, &app, Goal::Running, request.timeout).await?;
    Ok(())
}

/// Why the cluster cannot run the job, if it cannot: files are on one machine, and have no owner records that could
/// keep two containers apart.
fn only_local(file: &JobFile) -> Option<Problem> {
    let (name, _) = file.spec.systems.iter().find(|(_, system)| system.kind == SystemKind::Jsonl)?;
    let told = format!(
        "a job with a system of type \"jsonl\" runs on one machine only: `samza run {} --local`",
        file.name
    );
    Some(file.at(&format!("systems.{name}.type"), told))
}

/// Which outputs of an exactly-once job are not, if it has systems for such.
fn at_least_once_elsewhere(spec: &JobSpec) -> Option<String> {
    let (home, _) = spec.task.inputs.first()?.split_once('.')?;
    let others = spec.at_least_once_systems();
    if others.is_empty() {
        return None;
    }
    let brokers = |name: &str| spec.systems.get(name).map(|system| system.bootstrap.as_str());
    let same = others.iter().find(|name| brokers(name) == brokers(home) && brokers(name) != Some(""));
    let hint = same.map_or_else(String::new, |same| {
        format!("; `{same}` has the brokers of `{home}`: outputs to `{home}.…` are exactly-once")
    });
    Some(format!(
        "`task.delivery`: exactly-once holds for outputs to system `{home}`, the first input's; outputs to {} are \
         at-least-once{hint}",
        others.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
    ))
}

fn check(common: &Common, file: &JobFile, found: &Found) -> Result<(), Failure> {
    if let Some(told) = only_local(file) {
        say(&format!("note: {told}"));
    }
    if let Some(told) = at_least_once_elsewhere(&file.spec) {
        say(&format!("note: {told}"));
    }
    if common.output == Format::Json {
        return print_json(&file.spec);
    }
    print(&summary(&file.spec, found))
}

/// What would be run, for people.
fn summary(spec: &JobSpec, found: &Found) -> String {
    let containers = &spec.containers;
    let delivery = match spec.task.delivery {
        Delivery::AtLeastOnce => "at-least-once",
        Delivery::ExactlyOnce => "exactly-once",
    };
    let (package, name) = match found {
        Found::Here(package) => {
            (format!("{}, {}", package.path.display(), bytes(package.bytes)), &package.name)
        }
        Found::There(artefact) => (format!("{}, which nodes fetch", spec.package.source), &artefact.name),
    };
    let command =
        if spec.package.command.is_empty() { format!("./{name}") } else { spec.package.command.join(" ") };
    let window = spec.task.window_ms.map_or_else(|| "none".to_owned(), duration);
    let stores: Vec<String> = spec
        .stores
        .iter()
        .map(|(name, store)| match &store.changelog {
            Some(topic) => format!("{name} (changelog {}.{topic})", store.changelog_system),
            None => format!("{name} (no changelog)"),
        })
        .collect();
    let systems: Vec<String> = spec
        .systems
        .iter()
        .map(|(name, system)| match system.kind {
            SystemKind::Kafka => format!("{name} (kafka at {}{})", system.bootstrap, security(spec, system)),
            SystemKind::Jsonl => format!("{name} (jsonl in {})", system.path.as_deref().unwrap_or(".")),
        })
        .collect();
    let mut lines = vec![
        ("job", spec.job.to_string()),
        ("package", package),
        ("command", command),
        (
            "containers",
            format!("{} × {}, {} thread(s) each", containers.count, containers.resource, containers.threads),
        ),
        ("app master", spec.app_master.to_string()),
        ("inputs", spec.task.inputs.join(", ")),
        ("delivery", format!("{delivery}, commit every {}, window {window}", duration(spec.task.commit_ms))),
        ("systems", systems.join(", ")),
    ];
    if !stores.is_empty() {
        lines.push(("stores", stores.join(", ")));
    }
    let names: Vec<&str> = spec.package.secrets.keys().map(String::as_str).collect();
    let names: Vec<&str> = names.into_iter().filter(|name| !name.starts_with(SYSTEM_SECRETS)).collect();
    if !names.is_empty() {
        lines.push(("secrets", names.join(", ")));
    }
    let lines: String = lines.iter().map(|(name, value)| format!("{name:<12}{value}\n")).collect();
    format!("{lines}valid; nothing was submitted\n")
}

/// How a system is secured, and where its secrets come from.
fn security(spec: &JobSpec, system: &SystemSpec) -> String {
    let Some(security) = &system.security else { return String::new() };
    let mechanism = security.mechanism.map_or_else(String::new, |mechanism| format!(" with {mechanism}"));
    let values = security.values.iter().map(|(key, given)| match given {
        Given::Text(text) => format!(", {key} {text}"),
        Given::Secret(name) => {
            let file = spec.package.secrets.get(name).map_or("?", String::as_str);
            format!(", {key} from {file}")
        }
    });
    format!(", {}{mechanism}{}", security.protocol, values.collect::<String>())
}

async fn refuse_if_live(rm: &mut ResourceManager, file: &JobFile) -> Result<(), Failure> {
    let job = &file.spec.job;
    let apps = rm.list().await?;
    let Some(live) = apps.iter().find(|app| app.job == *job && !app.state.is_over()) else { return Ok(()) };
    let told = file.at(
        "job.name",
        format!(
            "{job} is live already: {}, {}; `samza stop {job}` ends it, --replace rolls it, another `job.id` runs beside it",
            live.app,
            tables::word(&live.state)
        ),
    );
    Err(Failure::new(Code::Refused, told.to_string()))
}

/// Puts the binary into the resource manager's store unless it is there.
async fn upload(rm: &mut ResourceManager, package: &Package) -> Result<Artefact, Failure> {
    let artefact = package.artefact()?;
    if !rm.has(&artefact.digest).await? {
        let mut progress =
            Progress::new(format!("uploading {} ({})", artefact.name, bytes(artefact.bytes)), artefact.bytes);
        let uploaded = rm.upload(&package.path, &artefact, |done| progress.at(done)).await;
        progress.done();
        uploaded?;
    }
    Ok(artefact)
}

/// Submits under one client-made id, so that a repetition after a lost answer starts nothing twice.
async fn hand_in(
    rm: &mut ResourceManager,
    file: &JobFile,
    submission: &Submission<'_>,
) -> Result<AppId, Failure> {
    const TRIES: u32 = 5;
    let client_id = client_id()?;
    let mut tries = 1;
    loop {
        match rm.submit(&client_id, submission).await {
            Err(failure) if failure.code == Code::Unreachable && tries < TRIES => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(300)).await;
                let _ = rm.reconnect().await;
            }
            Err(failure) if failure.code == Code::BadJobFile => {
                return Err(Failure::new(failure.code, format!("{}: {failure}", file.name)));
            }
            result => return result,
        }
    }
}

/// 128 random bits.
fn client_id() -> Result<String, Failure> {
    let mut bytes = [0u8; 16];
    std::fs::File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bytes))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
