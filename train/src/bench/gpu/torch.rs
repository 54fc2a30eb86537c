//! ⑦ PyTorch at the same shapes on the same card, by a script that is written beside the report.

use super::GpuError;
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// `tools/compare_gpu.py`, so that the binary alone is enough on the other machine.
const SCRIPT: &str = include_str!("../../../../tools/compare_gpu.py");

/// What PyTorch did.
#[derive(Debug, Serialize)]
pub struct Torch {
    /// Why there are no rows.
    pub skipped: Option<String>,
    /// What the script wrote to torch.json.
    pub found: Option<serde_json::Value>,
}

/// Writes the script into `out`, which is made.
pub(super) fn script(out: &Path) -> Result<PathBuf, GpuError> {
    let script = out.join("compare_gpu.py");
    let written = std::fs::create_dir_all(out).and_then(|()| std::fs::write(&script, SCRIPT));
    written.map_err(|source| GpuError::Write { path: script.display().to_string(), source })?;
    Ok(script)
}

/// Runs the script; a machine without Python or torch is no failure.
pub(super) fn torch(out: &Path, script: &Path) -> Result<Torch, GpuError> {
    let ran = Command::new("python3").arg(script).arg("--out").arg(out).output();
    let read = || serde_json::from_slice(&std::fs::read(out.join("torch.json")).ok()?).ok();
    let skipped = match ran {
        Err(e) => format!("python3 does not start: {e}"),
        Ok(ran) if ran.status.success() => match read() {
            Some(found) => return Ok(Torch { skipped: None, found: Some(found) }),
            None => "the script left no torch.json".into(),
        },
        // Its last line says what is missing.
        Ok(ran) => {
            let said = [&ran.stdout[..], &ran.stderr[..]].concat();
            String::from_utf8_lossy(&said).lines().last().unwrap_or("the script failed").to_owned()
        }
    };
    Ok(Torch { skipped: Some(skipped), found: None })
}

impl std::fmt::Display for Torch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(why) = &self.skipped {
            return writeln!(f, "PyTorch: skipped: {why}");
        }
        let rows = self.found.as_ref().and_then(|found| found["rows"].as_array());
        writeln!(f, "PyTorch {}", self.found.as_ref().map_or("", |found| found["torch"].as_str().unwrap_or("")))?;
        for row in rows.into_iter().flatten().filter_map(|row| row.as_object()) {
            let cells = row.iter().map(|(key, value)| match value.as_f64().filter(|_| value.is_f64()) {
                Some(x) => format!("{key} {x:.2}"),
                None => format!("{key} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned)),
            });
            writeln!(f, "  {}", cells.collect::<Vec<_>>().join("  "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_shown_and_a_skip_is_said() {
        let found = serde_json::json!({ "torch": "2.9", "rows": [{ "what": "copy", "gb_per_s": 4301.25, "n": 3 }] });
        let shown = Torch { skipped: None, found: Some(found) }.to_string();
        assert!(
            shown.contains("PyTorch 2.9") && shown.contains("gb_per_s 4301.25") && shown.contains("n 3"),
            "{shown}"
        );
        let shown = Torch { skipped: Some("no torch".into()), found: None }.to_string();
        assert_eq!(shown, "PyTorch: skipped: no torch\n");
    }
}
