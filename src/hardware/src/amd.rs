//! Reads AMD's GPUs from sysfs.

use std::path::{Path, PathBuf};

use crate::gpu::{DeviceFigures, Gpu, Vendor};

const VENDOR_ID: &str = "0x1002";

/// The GPUs below `sys`, ordered by the number of their card. Cards without memory of their own are left out.
pub(crate) fn detect(sys: &Path) -> Vec<Gpu> {
    let Ok(entries) = std::fs::read_dir(sys.join("class/drm")) else { return Vec::new() };
    // Besides `card0` there are its connectors, such as `card0-DP-1`.
    let number = |name: &str| name.strip_prefix("card")?.parse::<u32>().ok();
    let mut cards: Vec<(u32, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| Some((number(entry.file_name().to_str()?)?, entry.path().join("device"))))
        .collect();
    cards.sort();
    let amd = cards.into_iter().filter(|(_, dir)| read(dir, "vendor").as_deref() == Some(VENDOR_ID));
    amd.filter_map(|(card, dir)| {
        let memory_bytes = number_in(&dir, "mem_info_vram_total").filter(|bytes| *bytes > 0)?;
        let uevent = read(&dir, "uevent").unwrap_or_default();
        let address = uevent.lines().find_map(|line| line.strip_prefix("PCI_SLOT_NAME=")).map(str::to_owned);
        let model = || format!("AMD GPU {}", read(&dir, "device").unwrap_or_default());
        Some(Gpu {
            id: address.unwrap_or_else(|| format!("card{card}")),
            device: format!("amd:{card}"),
            name: read(&dir, "product_name").filter(|name| !name.is_empty()).unwrap_or_else(model),
            memory_bytes,
            compute_capability: None,
            vendor: Vendor::Amd,
            in_use: true,
            sysfs: Some(dir),
        })
    })
    .collect()
}

/// The live figures of a GPU, from its directory.
pub(crate) fn sample(dir: &Path) -> DeviceFigures {
    let total = number_in(dir, "mem_info_vram_total");
    let used = number_in(dir, "mem_info_vram_used");
    DeviceFigures {
        free_memory_bytes: total.zip(used).map(|(total, used)| total.saturating_sub(used)),
        utilisation_percent: number_in(dir, "gpu_busy_percent").and_then(|n| u8::try_from(n.min(100)).ok()),
        temperature_c: temperature(dir),
    }
}

/// The first sensor, in degrees Celsius; sysfs has thousandths.
fn temperature(dir: &Path) -> Option<i16> {
    let sensors = std::fs::read_dir(dir.join("hwmon")).ok()?;
    let thousandths: i64 =
        sensors.flatten().find_map(|sensor| read(&sensor.path(), "temp1_input")?.parse().ok())?;
    i16::try_from(thousandths / 1_000).ok()
}

fn read(dir: &Path, file: &str) -> Option<String> {
    Some(std::fs::read_to_string(dir.join(file)).ok()?.trim().to_owned())
}

fn number_in(dir: &Path, file: &str) -> Option<u64> {
    read(dir, file)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_of_amd_are_found_with_memory_and_live_figures() {
        let sys = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = sys.path().join("class/drm").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        // An Intel GPU, two of AMD, an AMD part of a processor without memory, and a connector.
        write("card0/device/vendor", "0x8086\n");
        for (card, total) in [(10, 68_702_699_520_u64), (2, 17_163_091_968)] {
            write(&format!("card{card}/device/vendor"), "0x1002\n");
            write(&format!("card{card}/device/device"), "0x74a1\n");
            write(&format!("card{card}/device/mem_info_vram_total"), &format!("{total}\n"));
            write(&format!("card{card}/device/mem_info_vram_used"), "1000\n");
            write(&format!("card{card}/device/gpu_busy_percent"), "37\n");
        }
        write("card2/device/product_name", "Radeon Pro\n");
        write("card2/device/uevent", "DRIVER=amdgpu\nPCI_SLOT_NAME=0000:03:00.0\n");
        write("card2/device/hwmon/hwmon4/temp1_input", "54000\n");
        write("card3/device/vendor", "0x1002\n");
        write("card2-DP-1/status", "connected\n");
        let found = detect(sys.path());
        let seen: Vec<_> = found.iter().map(|gpu| (gpu.device.as_str(), gpu.name.as_str())).collect();
        assert_eq!(seen, [("amd:2", "Radeon Pro"), ("amd:10", "AMD GPU 0x74a1")]);
        assert_eq!((found[0].id.as_str(), found[1].id.as_str()), ("0000:03:00.0", "card10"));
        assert_eq!(found[1].memory_bytes, 68_702_699_520);
        let figures = sample(found[0].sysfs.as_ref().unwrap());
        assert_eq!(figures.free_memory_bytes, Some(17_163_090_968));
        assert_eq!((figures.utilisation_percent, figures.temperature_c), (Some(37), Some(54)));
        assert!(detect(Path::new("/nonexistent")).is_empty());
    }
}
