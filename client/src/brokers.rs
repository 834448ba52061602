//! Whether Kafka answers, asked before anything is changed: a TCP connection, no more.

use std::time::Duration;

use job_file::JobFile;
use tokio::net::TcpStream;

use crate::failure::{Code, Failure};
use crate::output::say;

/// How long a broker may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(2);

/// Connects to the bootstrap servers of every system. One that answers is enough for a system; the others are
/// warned about.
///
/// # Errors
/// `Unreachable`, naming key, line and addresses, if none of a system's servers answers.
pub async fn check(file: &JobFile) -> Result<(), Failure> {
    for (name, system) in &file.spec.systems {
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
            say(&format!(
                "warning: {}",
                file.at(&key, format!("not all brokers answer: {}", silent.join("; ")))
            ));
        }
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
