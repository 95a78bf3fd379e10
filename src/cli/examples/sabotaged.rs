//! Runs `lamagrid` with a scheduler that has the fault named by `$LAMAGRID_SABOTAGE`; see `make chaos
//! SABOTAGE=...`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(lamagrid_cli::main(std::env::args().skip(1)))
}
