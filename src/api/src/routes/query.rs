//! Reads ids, query parameters and cursors.

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;

use lamagrid_client::Cursor;
use lamagrid_domain::{ClientName, ModelName, Owner, QueueName, Status, TaskId};

use crate::access::Caller;
use crate::problem::{Fault, Problem};

/// The query of a request, in pairs.
pub(crate) type Pairs = Result<Query<Vec<(String, String)>>, QueryRejection>;

/// Tasks on one page, unless the request says otherwise.
const PAGE: u32 = 50;
const MAX_PAGE: u32 = 100;
const PARAMETERS: [&str; 7] = ["state", "queue", "model", "client", "owner", "limit", "cursor"];

/// The parameters of a list of tasks.
#[derive(Debug, PartialEq)]
pub(crate) struct ListQuery {
    pub(crate) states: Vec<Status>,
    pub(crate) queue: Option<QueueName>,
    pub(crate) model: Option<ModelName>,
    pub(crate) client: Option<ClientName>,
    pub(crate) owner: Option<Owner>,
    pub(crate) limit: u32,
    pub(crate) after: Option<Cursor>,
}

/// Parses an id in a path; another text names no task.
pub(crate) fn task_id(text: &str) -> Result<TaskId, Problem> {
    text.parse().map_err(|error| Problem::new(Fault::NotFound, format!("there is no such task: {error}")))
}

/// Refuses parameters of a route that has none.
pub(crate) fn none(pairs: Pairs) -> Result<(), Problem> {
    match read(pairs)?.first() {
        None => Ok(()),
        Some((name, _)) => Err(unknown(name, &[])),
    }
}

impl ListQuery {
    /// Parses the parameters. Users see their own tasks, operators those of all owners or of one.
    pub(crate) fn parse(pairs: Pairs, caller: &Caller) -> Result<Self, Problem> {
        let mut query = Self {
            states: Vec::new(),
            queue: None,
            model: None,
            client: None,
            owner: (!caller.is_operator()).then(|| caller.owner().clone()),
            limit: PAGE,
            after: None,
        };
        let mut seen = Vec::new();
        for (name, value) in read(pairs)? {
            if seen.contains(&name) && name != "state" {
                return Err(Problem::bad(format!("the parameter {name} comes twice; send it once")));
            }
            match name.as_str() {
                "state" => {
                    let states = value.split(',').map(state).collect::<Result<Vec<_>, _>>()?;
                    query.states.extend(states);
                }
                "queue" => query.queue = Some(parsed(&name, &value)?),
                "model" => query.model = Some(parsed(&name, &value)?),
                "client" => query.client = Some(parsed(&name, &value)?),
                "owner" => {
                    caller.must_be_operator()?;
                    query.owner = Some(parsed(&name, &value)?);
                }
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=MAX_PAGE).contains(limit));
                    query.limit = limit.ok_or_else(|| {
                        Problem::bad(format!("limit must be a number from 1 to {MAX_PAGE}"))
                    })?;
                }
                "cursor" => query.after = Some(cursor(&value)?),
                _ => return Err(unknown(&name, &PARAMETERS)),
            }
            seen.push(name);
        }
        query.states.sort_unstable();
        query.states.dedup();
        Ok(query)
    }
}

fn read(pairs: Pairs) -> Result<Vec<(String, String)>, Problem> {
    let Query(pairs) =
        pairs.map_err(|error| Problem::bad(format!("the query is invalid: {}", error.body_text())))?;
    Ok(pairs)
}

fn unknown(name: &str, known: &[&str]) -> Problem {
    let name: String = name.chars().take(80).collect();
    let nearest = lamagrid_config::most_similar(&name, known.iter().copied());
    let hint =
        nearest.map_or_else(|| "leave it out".to_owned(), |nearest| format!("did you mean {nearest}?"));
    Problem::bad(format!("there is no parameter {name:?} here; {hint}"))
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(name: &str, value: &str) -> Result<T, Problem> {
    value.parse().map_err(|error| Problem::bad(format!("{name}: {error}")))
}

fn state(word: &str) -> Result<Status, Problem> {
    let states = [Status::Queued, Status::Processing, Status::Completed, Status::Failed, Status::Cancelled];
    states
        .into_iter()
        .find(|state| state.as_str() == word)
        .ok_or_else(|| Problem::bad(format!("a state is one of {}", states.map(Status::as_str).join(", "))))
}

/// The text of a cursor. Programs pass it back as it is.
pub(crate) fn cursor_text(cursor: &Cursor) -> String {
    format!("{:x}-{}", cursor.created_wall_ms, cursor.id)
}

fn cursor(text: &str) -> Result<Cursor, Problem> {
    let parse = || {
        let (created, id) = text.split_once('-')?;
        let is_number = (1..=16).contains(&created.len()) && created.bytes().all(|b| b.is_ascii_hexdigit());
        let created_wall_ms = is_number.then(|| u64::from_str_radix(created, 16).ok())??;
        Some(Cursor { created_wall_ms, id: id.parse().ok()? })
    };
    parse().ok_or_else(|| Problem::bad("the cursor is invalid; pass the `next` of the page before as it is"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_passed_back_and_made_up_ones_refused() {
        let made = Cursor { created_wall_ms: 1_700_000_000_000, id: TaskId::from_bytes([7; 16]) };
        assert_eq!(cursor(&cursor_text(&made)).unwrap(), made);
        for text in
            ["", "-", "0-0", "x-07070707070707070707070707070707", "+1-07070707070707070707070707070707", "1"]
        {
            assert!(cursor(text).is_err(), "{text}");
        }
    }
}
