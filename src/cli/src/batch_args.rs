//! Defines the command line of `lamagrid batch`. The doc comments are the help texts.

use clap::Subcommand;

use lamagrid_domain::BatchId;

/// `lamagrid batch`
#[derive(Debug, Subcommand)]
pub(crate) enum BatchVerb {
    /// List batches with the numbers of their tasks in each state.
    #[command(after_help = "Examples:\n  lamagrid batch list\n  lamagrid batch list --output json")]
    List,
    /// Show one batch.
    #[command(after_help = "Example:\n  lamagrid batch show 000102030405060708090a0b0c0d0e0f")]
    Show {
        /// The batch's id: 32 hexadecimal digits, as `lamagrid inpaint` and `lamagrid batch list` show it.
        id: BatchId,
    },
    /// Cancel all waiting and running tasks of a batch.
    #[command(after_help = "Example:\n  lamagrid batch cancel 000102030405060708090a0b0c0d0e0f")]
    Cancel {
        /// The batch's id: 32 hexadecimal digits.
        id: BatchId,
    },
    /// Submit the dead letters of a batch again: tasks that failed although they were retried.
    #[command(after_help = "Example:\n  lamagrid batch retry 000102030405060708090a0b0c0d0e0f")]
    Retry {
        /// The batch's id: 32 hexadecimal digits.
        id: BatchId,
    },
}
