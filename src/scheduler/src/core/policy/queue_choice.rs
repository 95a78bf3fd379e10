//! Which queue a task waits in.
//!
//! The configuration of its model decides, if it names a queue. Else it is the cheapest queue whose requirement covers
//! the need: of the device that the model prefers, then the one with the fewest labels, then with the least guaranteed
//! memory, then with the shorter expected wait. Queues without a requirement count only as the model's default queue,
//! when no requirement covers the need: without configuration, tasks go to `gpu` or `cpu` by their model alone.

use lamagrid_domain::{DeviceClass, Failure, FailureKind, ModelName, QueueName};

use super::needs::Need;
use super::route_table::{Requirement, RouteTable, gib};

/// The queue for a task of this model. `wait_ms` estimates the wait in a queue; it is asked only to decide a tie.
pub(crate) fn choose(
    routes: &RouteTable,
    model: &ModelName,
    need: &Need,
    wait_ms: impl Fn(&QueueName) -> Option<u64>,
) -> QueueName {
    if let Some(configured) = routes.configured_queue(model) {
        return configured.clone();
    }
    let covering = routes.requirements().iter().filter(|(_, requirement)| requirement.covers(need));
    let priced = covering.map(|(queue, requirement)| (Cost::of(requirement, need), queue));
    let Some((lowest, first)) = priced.clone().min() else { return model.default_queue() };
    let mut cheapest = priced.filter(|(cost, _)| *cost == lowest).map(|(_, queue)| queue);
    if cheapest.clone().nth(1).is_none() {
        return first.clone();
    }
    // Of queues with the same wait the first one counts, by name.
    let shortest = cheapest.by_ref().min_by_key(|queue| wait_ms(queue).unwrap_or(u64::MAX));
    shortest.unwrap_or(first).clone()
}

/// The cost of a queue: machines that other tasks need more.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cost {
    device: u8,
    labels: usize,
    memory_bytes: u64,
}

impl Cost {
    fn of(requirement: &Requirement, need: &Need) -> Self {
        let device = match requirement.device {
            Some(device) if device == need.prefers => 0,
            None => 1,
            Some(_) => 2,
        };
        Self { device, labels: requirement.labels.len(), memory_bytes: requirement.memory_bytes }
    }
}

/// Refuses a queue that the submitter named and whose requirement cannot serve the need.
///
/// # Errors
/// The need, the requirement, and a queue that can serve it.
pub(crate) fn check_named(
    routes: &RouteTable,
    queue: &QueueName,
    model: &ModelName,
    need: &Need,
) -> Result<(), Failure> {
    let Some(requirement) = routes.requirement(queue).filter(|requirement| !requirement.covers(need)) else {
        return Ok(());
    };
    let other = choose(routes, model, need, |_| None);
    let remedy = if other == *queue {
        "no queue covers it; change [queues.NAME.requires] of the scheduler's configuration".to_owned()
    } else {
        format!("submit it to {other}, or let the scheduler choose by naming no queue")
    };
    let text = format!(
        "queue {queue} requires {requirement}, and this task of {model} needs {}; {remedy}",
        in_words(need)
    );
    Err(Failure::new(FailureKind::InvalidInput, text))
}

/// A need for people.
pub(crate) fn in_words(need: &Need) -> String {
    let device = match need.device {
        Some(DeviceClass::Gpu) => "a gpu",
        Some(DeviceClass::Cpu) => "a cpu",
        None => "any device",
    };
    match need.memory_bytes {
        0 => device.to_owned(),
        bytes => format!("{device} with {} of memory", gib(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(name: &str) -> QueueName {
        name.parse().unwrap()
    }

    fn requirement(device: Option<DeviceClass>, gib: u64, labels: &[&str]) -> Requirement {
        let labels = labels.iter().map(|label| (*label).into()).collect();
        Requirement { device, memory_bytes: gib << 30, labels }
    }

    fn need(prefers: DeviceClass, gib: u64) -> Need {
        Need { device: None, prefers, memory_bytes: gib << 30, outgrown_bytes: 0 }
    }

    fn routes() -> RouteTable {
        let mut routes = RouteTable::default();
        for (name, requirement) in [
            ("small", requirement(Some(DeviceClass::Gpu), 8, &[])),
            ("twin", requirement(Some(DeviceClass::Gpu), 8, &[])),
            ("big", requirement(Some(DeviceClass::Gpu), 40, &[])),
            ("special", requirement(Some(DeviceClass::Gpu), 4, &["a100"])),
            ("slow", requirement(Some(DeviceClass::Cpu), 0, &[])),
        ] {
            routes.set_requirement(queue(name), requirement);
        }
        routes
    }

    fn chosen(routes: &RouteTable, need: Need) -> String {
        choose(routes, &"lama".parse().unwrap(), &need, |_| None).to_string()
    }

    #[test]
    fn the_cheapest_queue_that_covers_the_need_gets_the_task() {
        let routes = routes();
        for (prefers, gib, expected) in [
            (DeviceClass::Gpu, 0, "small"),
            (DeviceClass::Gpu, 8, "small"),
            (DeviceClass::Gpu, 9, "big"),
            (DeviceClass::Gpu, 41, "slow"),
            (DeviceClass::Cpu, 1, "slow"),
        ] {
            assert_eq!(chosen(&routes, need(prefers, gib)), expected, "{prefers:?} {gib}");
        }
        let only_gpu = Need { device: Some(DeviceClass::Gpu), ..need(DeviceClass::Gpu, 41) };
        assert_eq!(chosen(&routes, only_gpu), "gpu", "no requirement covers it: the default queue");
    }

    #[test]
    fn a_tie_goes_to_the_shorter_wait() {
        let (routes, model) = (routes(), "lama".parse().unwrap());
        let choose = |small, twin| {
            let wait = |queue: &QueueName| if queue.as_str() == "twin" { twin } else { small };
            choose(&routes, &model, &need(DeviceClass::Gpu, 1), wait).to_string()
        };
        assert_eq!(choose(Some(5), Some(4)), "twin");
        assert_eq!(choose(Some(4), Some(4)), "small");
        assert_eq!(choose(None, Some(4)), "twin");
    }

    #[test]
    fn the_configured_queue_counts_before_all_and_the_default_queue_without_configuration() {
        let mut routes = RouteTable::default();
        assert_eq!(chosen(&routes, need(DeviceClass::Cpu, 99)), "gpu");
        routes.set_queue("lama".parse().unwrap(), queue("mine"));
        assert_eq!(chosen(&routes, need(DeviceClass::Gpu, 1)), "mine");
    }

    #[test]
    fn a_named_queue_that_cannot_serve_is_refused_with_another_one() {
        let (routes, lama) = (routes(), "lama".parse().unwrap());
        let named = |name, need: &Need| check_named(&routes, &queue(name), &lama, need);
        assert_eq!(named("small", &need(DeviceClass::Gpu, 8)), Ok(()));
        assert_eq!(named("nowhere", &need(DeviceClass::Gpu, 99)), Ok(()), "admission refuses it");
        let failure = named("small", &need(DeviceClass::Gpu, 9)).unwrap_err();
        assert_eq!(
            failure.message,
            "queue small requires a gpu, 8 GiB of memory, and this task of lama needs any device with 9 GiB of memory; \
             submit it to big, or let the scheduler choose by naming no queue"
        );
        let only_cpu = Need { device: Some(DeviceClass::Cpu), ..need(DeviceClass::Cpu, 0) };
        assert!(named("big", &only_cpu).unwrap_err().message.contains("needs a cpu; submit it to slow"));
    }
}
