//! Tests which command lines are valid, and the errors for those that are not.

use clap::{CommandFactory, Parser};

use super::run;
use crate::args::Cli;

const ID: &str = "000102030405060708090a0b0c0d0e0f";

/// The parsed command line, or clap's kind of error.
fn parsed(line: &str) -> String {
    let args = std::iter::once("lamagrid").chain(line.split_whitespace());
    match Cli::try_parse_from(args) {
        Ok(cli) => format!("{:?}", cli.noun),
        Err(error) => format!("{:?}", error.kind()),
    }
}

#[test]
fn command_lines_parse_to_noun_and_verb() {
    let id = "TaskId(000102030405060708090a0b0c0d0e0f)";
    for (line, wanted) in [
        ("scheduler", "Scheduler(SchedulerArgs { lifeline: false, set: [] })"),
        (
            "scheduler --lifeline --set a.b=1 --set c==d",
            r#"Scheduler(SchedulerArgs { lifeline: true, set: [("a.b", "1"), ("c", "=d")] })"#,
        ),
        (
            "scheduler --set log.dir=",
            r#"Scheduler(SchedulerArgs { lifeline: false, set: [("log.dir", "")] })"#,
        ),
        ("scheduler --set =1", "ValueValidation"),
        ("scheduler --set a.b", "ValueValidation"),
        ("config show", "Config { verb: Show { origin: false } }"),
        ("config show --origin", "Config { verb: Show { origin: true } }"),
        ("config check", "Config { verb: Check { file: None } }"),
        ("config check a.toml", r#"Config { verb: Check { file: Some("a.toml") } }"#),
        ("config default", "Config { verb: Default }"),
        (&format!("task show {ID}"), &format!("Task {{ verb: Show {{ id: {id} }} }}")),
        (&format!("task cancel {ID}"), &format!("Task {{ verb: Cancel {{ id: {id} }} }}")),
        ("task show", "MissingRequiredArgument"),
        ("task show 12", "ValueValidation"),
        ("node list", "Node { verb: List }"),
        ("queue show", "Queue { verb: Show }"),
        ("queue show --output yaml", "InvalidValue"),
        ("queue show --data-dir=", "InvalidValue"),
        ("queue show --data-dir /d --join b", "ArgumentConflict"),
        ("", "DisplayHelpOnMissingArgumentOrSubcommand"),
        ("task", "DisplayHelpOnMissingArgumentOrSubcommand"),
        ("nodes list", "InvalidSubcommand"),
        ("node drain", "MissingRequiredArgument"),
        ("dead purge", "InvalidSubcommand"),
        ("task list --state broken", "ValueValidation"),
        ("task list --limit 0", "ValueValidation"),
        ("node list extra", "UnknownArgument"),
        ("--version", "DisplayVersion"),
        ("queue show --help", "DisplayHelp"),
    ] {
        assert_eq!(parsed(line), wanted, "{line}");
    }
}

#[test]
fn global_flags_are_accepted_anywhere() {
    for line in [
        "--config c.toml --data-dir /d --output json queue show",
        "queue --config c.toml --data-dir /d show --output json",
        "queue show --config=c.toml --data-dir=/d --output=json",
    ] {
        let cli = Cli::try_parse_from(std::iter::once("lamagrid").chain(line.split(' '))).unwrap();
        assert_eq!(
            format!("{:?}", cli.globals),
            r#"Globals { config: Some("c.toml"), data_dir: Some("/d"), join: None, output: Json }"#,
            "{line}"
        );
    }
}

#[test]
fn mistyped_words_get_a_suggestion() {
    for (line, words) in [
        ("nod list", "'node'"),
        ("task sohw", "'show'"),
        ("config show --orign", "'--origin'"),
        ("scheduler --lifelin", "'--lifeline'"),
        ("queue show --output jsn", "'json'"),
        ("scheduler --set node.slots", "for example node.slots=2"),
        ("task show 12", "32 hexadecimal digits"),
    ] {
        let ran = run(&line.split(' ').collect::<Vec<_>>(), &[]);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{line}");
        assert!(ran.err.starts_with("error: ") && ran.err.contains(words), "{line}: {}", ran.err);
    }
    let ran = run(&[], &[]);
    assert_eq!((ran.code, ran.out.as_str()), (2, ""));
    assert!(ran.err.contains("Usage: lamagrid"), "{}", ran.err);
}

#[test]
fn the_version_includes_the_protocol_version() {
    let ran = run(&["--version"], &[]);
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!((ran.code, ran.out), (0, format!("lamagrid {version} (protocol 1.6)\n")));
}

#[test]
fn every_help_has_an_example() {
    fn check(command: &mut clap::Command) {
        let help = command.render_long_help().to_string();
        assert!(help.contains("Example"), "{}: {help}", command.get_name());
        // The examples of a verb must name it.
        if !command.has_subcommands() {
            assert!(help.matches(command.get_name()).count() > 1, "{}: {help}", command.get_name());
        }
        command.get_subcommands_mut().for_each(check);
    }
    let mut command = Cli::command();
    command.build();
    check(&mut command);
    let ran = run(&["--help"], &[]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert!(ran.out.contains("lamagrid pynode") && ran.out.contains("Exit codes:"), "{}", ran.out);
}

#[test]
fn the_examples_are_valid_command_lines() {
    fn examples(command: &clap::Command, found: &mut Vec<String>) {
        let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let text = text.split("\nOther programs").next().unwrap_or_default().to_owned();
        found
            .extend(text.lines().filter_map(|line| line.trim().strip_prefix("lamagrid ").map(str::to_owned)));
        command.get_subcommands().for_each(|inner| examples(inner, found));
    }
    let mut found = Vec::new();
    examples(&Cli::command(), &mut found);
    assert!(found.len() > 15, "{found:?}");
    for example in found {
        // A remark follows several spaces, a redirection follows `>`.
        let line = example.split("  ").next().unwrap().split(" > ").next().unwrap().replace("ID", ID);
        let args = std::iter::once("lamagrid").chain(line.split(' '));
        assert!(Cli::try_parse_from(args).is_ok(), "{line}");
    }
}

#[test]
fn the_definition_passes_claps_checks() {
    Cli::command().debug_assert();
}

/// R7.4: the help lists each code that a command can end with.
#[test]
fn the_help_lists_each_exit_code() {
    let help = Cli::command().render_help().to_string();
    let listed: Vec<u8> = help
        .lines()
        .skip_while(|line| *line != "Exit codes:")
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect();
    let failures = lamagrid_domain::FailureKind::ALL.map(lamagrid_domain::FailureKind::exit_code);
    for code in [0, 1, 2, 78, 130, 141].into_iter().chain(failures) {
        assert!(listed.contains(&code), "{code} is not in {listed:?}");
    }
}

/// clap detects the conflict only on one side of the noun.
#[test]
fn data_dir_and_join_conflict_in_any_position() {
    for line in [
        "--data-dir d queue show --join b",
        "--join b queue show --data-dir d",
        "queue show --join b --data-dir d",
    ] {
        let ran = run(&line.split(' ').collect::<Vec<_>>(), &[]);
        assert_eq!(ran.code, 2, "{line}: {}", ran.err);
        assert!(ran.err.contains("--join"), "{}", ran.err);
    }
}
