//! `samza run job.toml --local`: becomes the job's binary, which runs the whole job in its process.

use std::convert::Infallible;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use types::PackageSpec;

use crate::failure::{Code, Failure};
use crate::package::{self, Found};

/// Executes the job's binary with `--local --job <job_file>` and `args`; returns only if it cannot.
///
/// # Errors
/// Without `local`: what to use instead. Else the job file or its package is not valid, or does not start.
pub fn run(job_file: &Path, local: bool, args: &[String]) -> Result<Infallible, Failure> {
    let shown = job_file.display();
    if !local {
        let told = format!(
            "`samza run` needs --local: it runs a job in one process on this machine. For a cluster: `samza-submit {shown}`"
        );
        return Err(Failure::new(Code::Usage, told));
    }
    let file = package::read_job_file(job_file)?;
    let package = match package::find(&file, job_file)? {
        Found::Here(package) => package,
        Found::There(_) => {
            let told =
                file.at("package.url", "is for clusters; a local run needs `package.path`, the job's binary");
            return Err(Failure::new(Code::BadJobFile, told.to_string()));
        }
    };
    let own = own_arguments(&file.spec.package, &package.name).ok_or_else(|| {
        let told =
            format!("it does not start `./{}`, the package; a local run is the package itself", package.name);
        Failure::new(Code::BadJobFile, file.at("package.command", told).to_string())
    })?;
    // A path without a slash would be looked for in PATH.
    let program = std::path::absolute(&package.path)?;
    let error = Command::new(&program)
        .args(own)
        .arg("--local")
        .arg("--job")
        .arg(job_file)
        .args(args)
        .envs(&file.spec.package.env)
        .exec();
    Err(Failure::other(format!("cannot start {}: {error}", program.display())))
}

/// The arguments that `package.command` gives the package; none if it starts something else.
fn own_arguments<'a>(package: &'a PackageSpec, name: &str) -> Option<&'a [String]> {
    match package.command.split_first() {
        None => Some(&[]),
        Some((program, args)) => (program.strip_prefix("./") == Some(name)).then_some(args),
    }
}
