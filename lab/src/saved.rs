//! Guests started from a saved state: booted and prepared once, then there within a second.
//!
//! A state fits what it was saved from alone: image, QEMU, its arguments and what was run in the
//! guest. All of that is the key that is kept beside it. One state is kept for each name, and only
//! so many names.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use serde_json::json;

use crate::vm::arguments;
use crate::{Host, Lab, Vm, VmOptions, provisions};

/// States kept; each is about as large as the memory that its guest uses.
const KEPT: usize = 8;
/// Longest wait for a state to be written or read.
const LIMIT: Duration = Duration::from_secs(120);

/// A guest, and what is run in it before its state is saved.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The state's name.
    pub name: String,
    /// The VM.
    pub options: VmOptions,
    /// Shell commands, run one after the other once it has booted.
    pub commands: Vec<String>,
}

impl Recipe {
    /// Starts the VM at `host` from its saved state, which is made first if there is none that
    /// fits: then the guest boots, runs the commands, and is saved when `ready` returns.
    pub fn start(
        &self,
        lab: &Lab,
        host: Host,
        ready: impl FnOnce(&mut Vm) -> Result<()>,
    ) -> Result<Vm> {
        let state = folder().join(format!("{}.state", self.name));
        let key_file = folder().join(format!("{}.key", self.name));
        let key = self.key()?;
        if !state.exists() || fs::read_to_string(&key_file).ok().as_ref() != Some(&key) {
            fs::create_dir_all(folder())?;
            // Whatever is interrupted from here on leaves no state with a key.
            let _ = fs::remove_file(&key_file);
            self.save(lab, host, &state, ready)
                .with_context(|| format!("preparing the guest `{}`", self.name))?;
            fs::write(&key_file, key)?;
            keep_newest(&folder(), KEPT)?;
        }
        restore(lab, host, &self.options, &state)
            .with_context(|| format!("starting the guest `{}` from its state", self.name))
    }

    fn key(&self) -> Result<String> {
        let image = self.options.image.key(self.options.kernel);
        let waits = VmOptions {
            incoming: false,
            paused: false,
            ..self.options.clone()
        };
        let mut key = vec![
            self.options.version.exact()?,
            fs::read_to_string(&image).with_context(|| image.display().to_string())?,
        ];
        key.extend(arguments(&waits, Path::new(""))?);
        key.extend(self.commands.iter().cloned());
        Ok(key.join("\n"))
    }

    fn save(
        &self,
        lab: &Lab,
        host: Host,
        state: &Path,
        ready: impl FnOnce(&mut Vm) -> Result<()>,
    ) -> Result<()> {
        let mut vm = Vm::start(lab, host, &self.options)?;
        vm.wait_booted()?;
        for command in &self.commands {
            vm.guest(command)?;
        }
        ready(&mut vm)?;
        vm.qmp("stop", &json!({}))?;
        // A file has no line that would have to be shared.
        vm.qmp("migrate-set-parameters", &json!({"max-bandwidth": 0}))?;
        let uri = format!("file:{}", state.display());
        vm.qmp("migrate", &json!({"uri": uri}))?;
        vm.wait_status("postmigrate", LIMIT)
    }
}

fn restore(lab: &Lab, host: Host, options: &VmOptions, state: &Path) -> Result<Vm> {
    let mut vm = Vm::start(lab, host, &options.as_destination())?;
    let uri = format!("file:{}", state.display());
    vm.qmp("migrate-incoming", &json!({"uri": uri}))?;
    // As it was when it was saved.
    vm.wait_status("paused", LIMIT)?;
    vm.qmp("cont", &json!({}))?;
    vm.guest("true")?;
    Ok(vm)
}

fn folder() -> PathBuf {
    provisions().join("saved")
}

/// Removes all states but the newest.
fn keep_newest(folder: &Path, kept: usize) -> Result<()> {
    let mut states: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|it| it == "state") {
            states.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    states.sort();
    let surplus = states.len().saturating_sub(kept);
    for (_, path) in &states[..surplus] {
        fs::remove_file(path)?;
        // Its key: absent if it was never finished.
        let _ = fs::remove_file(path.with_extension("key"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_states_go() -> Result<()> {
        let folder = tempfile::tempdir()?;
        for age in 0..4u64 {
            for kind in ["state", "key"] {
                let path = folder.path().join(format!("{age}.{kind}"));
                let file = fs::File::create(path)?;
                file.set_modified(SystemTime::now() - Duration::from_secs(60 * age))?;
            }
        }
        keep_newest(folder.path(), 2)?;
        let mut left: Vec<_> = fs::read_dir(folder.path())?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        left.sort();
        assert_eq!(left, ["0.key", "0.state", "1.key", "1.state"]);
        Ok(())
    }
}
