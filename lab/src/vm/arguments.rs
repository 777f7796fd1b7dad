//! QEMU's command line.

use std::path::Path;

use anyhow::Result;

use super::VmOptions;
use crate::GUEST;
use crate::machine::accelerator;

#[derive(Default)]
struct Arguments(Vec<String>);

impl Arguments {
    fn add<'a>(&mut self, arguments: impl IntoIterator<Item = &'a str>) {
        self.0.extend(arguments.into_iter().map(str::to_owned));
    }
}

/// All arguments. They decide which saved state fits: what the guest has
/// booted from is a part of it, the sockets' folder is not.
pub(crate) fn arguments(options: &VmOptions, folder: &Path) -> Result<Vec<String>> {
    let mut all = Arguments::default();
    let at = |name: &str| folder.join(name).display().to_string();
    let (accelerator, cpu) = match accelerator() {
        _ if options.counts_instructions => ("tcg,thread=single", "max"),
        "kvm" => ("kvm", "host"),
        _ => ("tcg,thread=multi", "max"),
    };
    all.add(["-machine", &options.machine, "-accel", accelerator]);
    all.add(["-cpu", cpu, "-m", &options.memory]);
    all.add(["-smp", &options.vcpus.to_string()]);
    all.add([
        "-display",
        "none",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
    ]);
    let initrd = options.initrd()?.display().to_string();
    all.add(["-kernel", &options.kernel.file().display().to_string()]);
    all.add(["-initrd", &initrd]);
    let mut words = "console=ttyS0 quiet panic=-1 mitigations=off net.ifnames=0".to_owned();
    if options.network {
        words += &format!(" lab.ip={GUEST}/24");
    }
    if options.agent {
        words += " lab.agent";
    }
    words = words + " " + &options.kernel_words;
    all.add(["-append", &words]);
    all.add(["-serial", &format!("file:{}", at("serial"))]);
    for monitor in ["qmp", "lab-qmp"] {
        all.add(["-qmp", &format!("unix:{},server=on,wait=off", at(monitor))]);
    }
    all.add(["-device", "virtio-serial-pci"]);
    for (id, port, socket) in [
        ("control", "lab.0", "control"),
        ("agent", "org.unmoor.0", "agent"),
    ] {
        let path = at(socket);
        all.add([
            "-chardev",
            &format!("socket,id={id},path={path},server=on,wait=off"),
            "-device",
            &format!("virtserialport,chardev={id},name={port}"),
        ]);
    }
    all.add(["-device", "virtio-rng-pci"]);
    if options.network {
        all.add([
            "-netdev",
            "tap,id=n0,ifname=tap0,script=no,downscript=no",
            "-device",
            "virtio-net-pci,netdev=n0,mac=52:54:00:77:00:10,romfile=",
        ]);
    }
    if let Some(disk) = options.image.disk() {
        let disk = disk.display();
        all.add([
            "-drive",
            &format!("if=none,id=root,file={disk},format=raw,readonly=on,file.locking=off"),
            "-device",
            "virtio-blk-pci,drive=root",
        ]);
    }
    if options.counts_instructions {
        all.add(["-icount", "shift=0"]);
    }
    if options.incoming {
        all.add(["-incoming", "defer"]);
    }
    if options.paused {
        all.add(["-S"]);
    }
    all.add(options.extra.iter().map(String::as_str));
    Ok(all.0)
}
