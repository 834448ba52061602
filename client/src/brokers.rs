//! Whether Kafka answers, asked before anything is changed, as the job's clients will ask it: with the job's settings and
//! secrets.

use std::time::Duration;

use job_file::JobFile;
use kafka::{Access, KafkaAdmin, KafkaConsumer, KafkaProducer};
use task_api::system::SystemError;
use tokio::net::TcpStream;
use types::{Secrets, SystemKind, SystemSpec};

use crate::failure::{Code, Failure};
use crate::output::say;

/// How long a broker may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long brokers may take to answer a first question.
const FIRST_ANSWER: Duration = Duration::from_secs(20);
/// After this long it is said that somebody waits.
const QUIET: Duration = Duration::from_secs(3);

/// How the clients of a job get into a system; its secrets are those of `secrets`.
///
/// # Errors
/// One is not there or not what it should be.
pub fn access(name: &str, system: &SystemSpec, secrets: &Secrets) -> Result<Access, SystemError> {
    let of = |name: &str| secrets.0.get(name).cloned().ok_or_else(|| format!("there is no secret {name}"));
    Access::of(name, system, &of)
}

/// Makes the job's clients, connects to the bootstrap servers of every system and asks them a question. One that answers
/// is enough for a system; those that are not there are warned about.
///
/// # Errors
/// `BadJobFile` if a secret or the settings together are wrong; `Unreachable` if none of a system's servers answers. Both
/// name key and line.
pub async fn check(file: &JobFile, secrets: &Secrets) -> Result<(), Failure> {
    for (name, system) in file.spec.systems.iter().filter(|(_, system)| system.kind == SystemKind::Kafka) {
        let bad = |key: &str, error: &SystemError| {
            let at = file.at(&format!("systems.{name}.{key}"), error.to_string());
            Failure::new(Code::BadJobFile, at.to_string())
        };
        let access = access(name, system, secrets).map_err(|error| bad("security", &error))?;
        clients(&access).map_err(|(key, error)| bad(key, &error))?;
        reach(file, name, system).await?;
        let mut asking = tokio::task::spawn_blocking(move || {
            let admin = KafkaAdmin::new(&access.bootstrap, &access.consumer);
            admin.map(|admin| admin.first_contact(FIRST_ANSWER))
        });
        let asked = match tokio::time::timeout(QUIET, &mut asking).await {
            Ok(asked) => asked,
            Err(_) => {
                let most = FIRST_ANSWER.as_secs();
                say(&format!("waiting for an answer of the brokers of system `{name}`, {most} s at most"));
                asking.await
            }
        };
        let asked = asked.map_err(|error| Failure::other(error.to_string()))?;
        if let Err(none) = asked.map_err(|error| bad("consumer", &error))? {
            let key = format!("systems.{name}.{}", none.key);
            let known = file.line_of(&key).is_some();
            let key = if known { key } else { format!("systems.{name}.bootstrap") };
            return Err(Failure::new(Code::Unreachable, file.at(&key, none.why).to_string()));
        }
    }
    Ok(())
}

/// Makes a client of each kind, which connects to nobody: settings that do not go together are told now.
fn clients(access: &Access) -> Result<(), (&'static str, SystemError)> {
    KafkaConsumer::new(&access.bootstrap, "samza-submit", "samza-submit", &access.consumer)
        .map_err(|error| ("consumer", error))?;
    KafkaProducer::transactional(&access.bootstrap, "samza-submit", &access.producer)
        .map_err(|error| ("producer", error))?;
    Ok(())
}

/// A connection to each of a system's servers, no more.
async fn reach(file: &JobFile, name: &str, system: &SystemSpec) -> Result<(), Failure> {
    let probes: Vec<_> =
        system.bootstrap.split(',').map(|address| tokio::spawn(probe(address.to_owned()))).collect();
    let mut silent = Vec::new();
    let mut answered = false;
    for probe in probes {
        match probe.await.map_err(|error| Failure::other(error.to_string()))? {
            Ok(()) => answered = true,
            Err(reason) => silent.push(reason),
        }
    }
    let key = format!("systems.{name}.bootstrap");
    if !answered {
        let problem = file.at(&key, format!("no broker answers: {}", silent.join("; ")));
        return Err(Failure::new(Code::Unreachable, problem.to_string()));
    }
    if !silent.is_empty() {
        say(&format!("warning: {}", file.at(&key, format!("not all brokers answer: {}", silent.join("; ")))));
    }
    Ok(())
}

async fn probe(address: String) -> Result<(), String> {
    match tokio::time::timeout(PATIENCE, TcpStream::connect(&address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("{address} ({})", plain(&error))),
        Err(_) => Err(format!("{address} (nothing within {} s)", PATIENCE.as_secs())),
    }
}

/// `connection refused`, without the number of the system's error.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    text.to_lowercase()
}
