//! Applies `CUDA_VISIBLE_DEVICES` to the GPUs of the host, by CUDA's rules.

use crate::Remark;
use crate::gpu::Gpu;

/// The variables by which CUDA selects and orders GPUs, as the caller read them from its environment.
#[derive(Debug, Clone, Default)]
pub struct CudaEnvironment {
    /// `CUDA_VISIBLE_DEVICES`; `None` if it is not set.
    pub visible_devices: Option<String>,
    /// `CUDA_DEVICE_ORDER`; `None` if it is not set.
    pub device_order: Option<String>,
}

/// A GPU of the host with the devices that programs can use on it: itself, its MIG instances, or none if it is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostGpu {
    /// The driver's index.
    pub(crate) index: u32,
    /// Its UUID; empty if the driver did not tell it.
    pub(crate) id: String,
    pub(crate) devices: Vec<Gpu>,
}

/// GPUs with the remarks about them.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) gpus: Vec<Gpu>,
    pub(crate) remarks: Vec<Remark>,
}

/// The GPUs that CUDA would show, in its order.
///
/// As CUDA does, entries from the first invalid one on are ignored, and a repeated entry hides every GPU.
pub(crate) fn select(host: &[HostGpu], cuda: &CudaEnvironment) -> Found {
    let all = || host.iter().flat_map(|gpu| gpu.devices.iter().cloned());
    let Some(list) = cuda.visible_devices.as_deref() else {
        return Found { gpus: all().collect(), remarks: Vec::new() };
    };
    let mut found = Found::default();
    let mut has_index = false;
    for (position, entry) in list.split(',').map(str::trim).enumerate() {
        if position == 0 && matches!(entry, "" | "-1" | "NoDevFiles") {
            break;
        }
        let chosen = match resolve(host, entry) {
            Ok(chosen) => chosen,
            Err(reason) => {
                found.remarks.push(Remark::warning(format!(
                    "CUDA_VISIBLE_DEVICES={list}: entry `{entry}` {reason}; it and all entries after it are ignored, as CUDA does"
                )));
                break;
            }
        };
        has_index |= !entry.starts_with(|c: char| c.is_ascii_alphabetic());
        if chosen.iter().any(|gpu| found.gpus.contains(gpu)) {
            found.gpus.clear();
            found.remarks.push(Remark::warning(format!(
                "CUDA_VISIBLE_DEVICES={list} names a GPU twice, and so hides every GPU: name each one once"
            )));
            return found;
        }
        found.gpus.extend(chosen);
    }
    let hidden = host.len();
    if found.gpus.is_empty() && found.remarks.is_empty() && hidden > 0 {
        found.remarks.push(Remark::note(format!(
            "CUDA_VISIBLE_DEVICES={list} hides the {hidden} GPUs of this host: unset it to use them"
        )));
    }
    let mut names = all().map(|gpu| gpu.name);
    let are_alike = names.next().is_none_or(|first| names.all(|name| name == first));
    if has_index && !are_alike && cuda.device_order.as_deref() != Some("PCI_BUS_ID") {
        found.remarks.push(Remark::warning(format!(
            "CUDA_VISIBLE_DEVICES={list} counts the GPUs by bus address here, but CUDA itself counts the fastest first: \
             set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name them by UUID"
        )));
    }
    found
}

/// Why an entry of `CUDA_VISIBLE_DEVICES` shows no GPU.
#[derive(Debug, thiserror::Error)]
enum EntryError {
    #[error("names no GPU of this host")]
    Absent,
    #[error("fits {count} GPUs: write more of the UUID")]
    Ambiguous { count: usize },
    #[error("is no index and no UUID")]
    Malformed,
    #[error("is too high: this host has {count} GPUs")]
    TooHigh { count: usize },
}

/// The devices that one entry names.
fn resolve(host: &[HostGpu], entry: &str) -> Result<Vec<Gpu>, EntryError> {
    let only = |mut matches: Vec<Vec<Gpu>>| match matches.len() {
        1 => Ok(matches.remove(0)),
        0 => Err(EntryError::Absent),
        count => Err(EntryError::Ambiguous { count }),
    };
    if entry.starts_with("GPU-") {
        let fits = host.iter().filter(|gpu| gpu.id.starts_with(entry));
        return only(fits.map(|gpu| gpu.devices.clone()).collect());
    }
    if entry.starts_with("MIG-") {
        let fits = host.iter().flat_map(|gpu| &gpu.devices).filter(|gpu| gpu.id.starts_with(entry));
        return only(fits.map(|gpu| vec![gpu.clone()]).collect());
    }
    // CUDA reads the digits at the beginning, and ignores the rest of the entry.
    let digits = entry.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    let index: u32 = digits.parse().map_err(|_| EntryError::Malformed)?;
    let gpu = host.iter().find(|gpu| gpu.index == index);
    gpu.map(|gpu| gpu.devices.clone()).ok_or(EntryError::TooHigh { count: host.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(id: &str, device: &str, name: &str) -> Gpu {
        Gpu { id: id.into(), ..Gpu::undetected(device.into(), name.into(), 1 << 30) }
    }

    /// Four GPUs: the second is lost, the fourth is divided into two.
    fn host() -> Vec<HostGpu> {
        let whole = |index: u32, id: &str| HostGpu {
            index,
            id: id.into(),
            devices: vec![gpu(id, &format!("cuda:{index}"), "A100")],
        };
        let lost = HostGpu { index: 1, id: String::new(), devices: Vec::new() };
        let divided = HostGpu {
            index: 3,
            id: "GPU-dd".into(),
            devices: vec![gpu("MIG-d1", "cuda:3:0", "A100"), gpu("MIG-d2", "cuda:3:1", "A100")],
        };
        vec![whole(0, "GPU-aa1"), lost, whole(2, "GPU-aa2"), divided]
    }

    fn shown(list: Option<&str>) -> (Vec<String>, Vec<String>) {
        let cuda = CudaEnvironment { visible_devices: list.map(str::to_owned), device_order: None };
        let Found { gpus, remarks } = select(&host(), &cuda);
        (
            gpus.into_iter().map(|gpu| gpu.device).collect(),
            remarks.into_iter().map(|remark| remark.text).collect(),
        )
    }

    #[test]
    fn indices_uuids_and_their_beginnings_select_in_their_order() {
        for (list, wanted) in [
            (None, vec!["cuda:0", "cuda:2", "cuda:3:0", "cuda:3:1"]),
            (Some("2,0"), vec!["cuda:2", "cuda:0"]),
            (Some(" 0 , 2 "), vec!["cuda:0", "cuda:2"]),
            (Some("GPU-aa2,GPU-aa1"), vec!["cuda:2", "cuda:0"]),
            (Some("MIG-d2"), vec!["cuda:3:1"]),
            (Some("3"), vec!["cuda:3:0", "cuda:3:1"]),
            (Some("GPU-d"), vec!["cuda:3:0", "cuda:3:1"]),
            (Some("2nd"), vec!["cuda:2"]),
            // A lost GPU is skipped; its own remark tells of it.
            (Some("0,1,2"), vec!["cuda:0", "cuda:2"]),
        ] {
            assert_eq!(shown(list), (wanted.into_iter().map(str::to_owned).collect(), vec![]), "{list:?}");
        }
    }

    #[test]
    fn everything_from_an_invalid_entry_on_is_ignored_with_a_remark() {
        for (list, wanted, word) in [
            ("0,7,2", vec!["cuda:0"], "this host has 4 GPUs"),
            ("GPU-aa", vec![], "fits 2 GPUs"),
            ("MIG-x", vec![], "names no GPU of this host"),
            ("2,all", vec!["cuda:2"], "no index and no UUID"),
            ("2,-1,0", vec!["cuda:2"], "no index and no UUID"),
            ("0,GPU-aa1,2", vec![], "names a GPU twice"),
        ] {
            let (gpus, remarks) = shown(Some(list));
            assert_eq!(gpus, wanted, "{list}");
            assert!(
                remarks.len() == 1 && remarks[0].contains(word) && remarks[0].contains(list),
                "{remarks:?}"
            );
        }
        for hidden in ["", "-1", " "] {
            let (gpus, remarks) = shown(Some(hidden));
            assert!(gpus.is_empty() && remarks[0].contains("hides the 4 GPUs"), "{remarks:?}");
        }
    }

    #[test]
    fn indices_of_different_gpus_are_ambiguous_unless_the_order_is_fixed() {
        let mut host = host();
        host[0].devices[0].name = "T4".into();
        let remarks = |list: &str, order: Option<&str>| {
            let cuda = CudaEnvironment {
                visible_devices: Some(list.into()),
                device_order: order.map(str::to_owned),
            };
            select(&host, &cuda).remarks.len()
        };
        assert_eq!(
            (remarks("0", None), remarks("0", Some("PCI_BUS_ID")), remarks("GPU-aa1", None)),
            (1, 0, 0)
        );
    }
}
