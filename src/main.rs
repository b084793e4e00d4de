//! The process: reads the command line, starts the logs, runs one instance.

use std::process::ExitCode;

use emnetchain::{
    cli::{self, Exit, Task},
    instance::{self, offline},
    logging,
};

fn main() -> ExitCode {
    let exit = match cli::start() {
        Task::Nothing(exit) => exit,
        Task::Backup { data_dir, file } => offline::backup(&data_dir, &file),
        Task::Check { data_dir } => offline::check(&data_dir),
        Task::Restore { file, data_dir, node } => offline::restore(&file, &data_dir, node),
        Task::Serve { config, sources } => {
            let logs = logging::start(&config.log_level, config.log_format);
            run(instance::run(*config, sources, logs))
        }
    };
    exit.into()
}

/// Runs the instance to its end. A panic in it is a fault inside like any other.
fn run(instance: impl Future<Output = Exit> + Send + 'static) -> Exit {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the process cannot have threads");
            return Exit::Internal;
        }
    };
    let exit = runtime.block_on(async { tokio::spawn(instance).await }).unwrap_or(Exit::Internal);
    // What the instance wanted to finish is finished; nothing else may hold up the end.
    runtime.shutdown_background();
    exit
}
