//! Options that both programs have.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Where the resource manager is, and how results are printed.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// The resource manager's gRPC address
    #[arg(long, global = true, env = "SAMZA_RM", default_value = "127.0.0.1:8030", value_name = "HOST:PORT")]
    pub rm: String,

    /// File with the cluster's token; needed when the resource manager is not on loopback
    #[arg(long, global = true, env = "SAMZA_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// Form of what goes to stdout
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

/// Forms of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For programs; stable
    Json,
}
