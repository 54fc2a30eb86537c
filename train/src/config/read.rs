//! From text and overrides to a [`Run`].

use super::{ConfigError, File, Run, check};
use std::path::Path;

/// A file longer than this is not a configuration.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads and checks a file; `sets` are overrides like `optim.lr=3e-4`.
pub fn load(path: &Path, sets: &[String]) -> Result<Run, ConfigError> {
    let name = path.display().to_string();
    let unreadable = |source| ConfigError::Unreadable { file: name.clone(), source };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(file, FILE_BYTES_MAX + 1), &mut text).map_err(unreadable)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let why = format!("longer than {FILE_BYTES_MAX} bytes; is this a configuration?");
        return Err(ConfigError::Syntax { at: name, why });
    }
    let text = String::from_utf8(text).map_err(|e| ConfigError::Syntax {
        at: name.clone(),
        why: format!("not UTF-8 text at byte {}", e.utf8_error().valid_up_to()),
    })?;
    parse(&text, &name, sets)
}

/// Parses and checks a text; `name` stands for it in errors.
pub fn parse(text: &str, name: &str, sets: &[String]) -> Result<Run, ConfigError> {
    let mut table: toml::Table = toml::from_str(text).map_err(|e| ConfigError::Syntax {
        at: e.span().map_or(name.into(), |span| format!("{name}:{}", line_of(text, span.start))),
        why: e.message().to_string(),
    })?;
    let mut places = Places { text, name, sets: Vec::new() };
    for given in sets {
        let (key, value) = override_of(given)?;
        put(&mut table, &key, value).map_err(|why| ConfigError::Value {
            at: format!("--set {given}"),
            key: key.join("."),
            why,
        })?;
        places.sets.push((key.join("."), given.clone()));
    }
    let file: File = serde_path_to_error::deserialize(toml::Value::Table(table)).map_err(|e| explain(&e, &places))?;
    match check::check(&file) {
        Ok(()) => Ok(Run { file }),
        Err((key, why)) => Err(ConfigError::Value { at: places.of(&key), key, why }),
    }
}

/// `a.b=c` as a path and a TOML value; what is no TOML is a string.
fn override_of(given: &str) -> Result<(Vec<String>, toml::Value), ConfigError> {
    let bad = || ConfigError::Override { given: given.into() };
    let (key, value) = given.split_once('=').ok_or_else(bad)?;
    let key: Vec<String> = key.trim().split('.').map(|part| part.trim().to_string()).collect();
    if key.iter().any(|part| part.is_empty()) {
        return Err(bad());
    }
    let value = value.trim();
    let parsed = toml::from_str::<toml::Table>(&format!("x = {value}")).ok();
    // A text with a line break could smuggle in a second key; then it is a string.
    let parsed = parsed.filter(|t| t.len() == 1).and_then(|mut t| t.remove("x"));
    Ok((key, parsed.unwrap_or_else(|| toml::Value::String(value.into()))))
}

/// Sets `table.a.b` to `value`, making sections that are not there.
fn put(table: &mut toml::Table, key: &[String], value: toml::Value) -> Result<(), String> {
    let (last, sections) = key.split_last().expect("config: an override has a key");
    let mut at = table;
    for section in sections {
        let entry = at.entry(section.clone()).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        let found = entry.type_str();
        at = entry.as_table_mut().ok_or_else(|| format!("{section} is of type {found}, not a section"))?;
    }
    at.insert(last.clone(), value);
    Ok(())
}

/// Where keys come from, for messages.
struct Places<'a> {
    text: &'a str,
    name: &'a str,
    sets: Vec<(String, String)>,
}

impl Places<'_> {
    /// `--set ...` for a key that was overridden, else file:line, else the file.
    fn of(&self, key: &str) -> String {
        let covers = |set: &str| key == set || key.starts_with(&format!("{set}."));
        if let Some((_, given)) = self.sets.iter().rev().find(|(set, _)| covers(set)) {
            return format!("--set {given}");
        }
        match find_line(self.text, key) {
            Some(line) => format!("{}:{line}", self.name),
            None => self.name.into(),
        }
    }
}

/// Turns serde's words into facts.
fn explain(error: &serde_path_to_error::Error<toml::de::Error>, places: &Places<'_>) -> ConfigError {
    let path = error.path().to_string();
    let path = if path == "." { String::new() } else { path };
    let message = error.inner().message().trim().to_string();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if message.starts_with("unknown field") && !quoted.is_empty() {
        let (wrong, known) = (quoted[0], &quoted[1..]);
        let section = path.strip_suffix(wrong).unwrap_or(&path).trim_end_matches('.').to_string();
        let within = |key: &str| if section.is_empty() { key.to_string() } else { format!("{section}.{key}") };
        let key = within(wrong);
        return ConfigError::UnknownKey {
            at: places.of(&key),
            meant: nearest(wrong, known).map(within),
            section: if section.is_empty() { "the file".into() } else { format!("[{section}]") },
            known: known.join(", "),
            key,
        };
    }
    let (key, why) = match (message.strip_prefix("missing field"), quoted.first()) {
        (Some(_), Some(field)) => {
            let key = if path.is_empty() { field.to_string() } else { format!("{path}.{field}") };
            (key, "is missing; it changes the result, so it has no default".to_string())
        }
        _ => {
            let meant = match message.starts_with("unknown variant") && quoted.len() > 1 {
                true => nearest(quoted[0], &quoted[1..]),
                false => None,
            };
            let hint = meant.map_or(String::new(), |m| format!(" (did you mean \"{m}\"?)"));
            (path.clone(), format!("{}{hint}", plain(&message)))
        }
    };
    let at = match key == path {
        true => places.of(&key),
        // A missing key has no line; its section has.
        false => places.of(&path),
    };
    ConfigError::Value { at, key: if key.is_empty() { "the file".into() } else { key }, why }
}

/// serde's message with what was expected in words of TOML instead of Rust's.
fn plain(message: &str) -> String {
    let Some((found, expected)) = message.rsplit_once("expected ") else { return message.into() };
    let expected = match expected {
        "usize" | "u8" | "u16" | "u32" | "u64" => "a whole number, 0 or more",
        "f32" | "f64" => "a number",
        "a sequence" => "a list, as [1, 2]",
        expected if expected.starts_with("struct ") => "a section, or { key = value, .. }",
        expected => expected,
    };
    format!("{found}expected {expected}")
}

/// The name nearest to `wrong`, when it is near enough to be meant.
fn nearest<'a>(wrong: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|&k| (strsim::damerau_levenshtein(wrong, k), k))
        .filter(|&(distance, k)| distance <= 2.max(k.len() / 3) && distance < k.len().max(wrong.len()))
        .min()
        .map(|(_, k)| k)
}

fn line_of(text: &str, byte: usize) -> usize {
    1 + text.bytes().take(byte).filter(|&b| b == b'\n').count()
}

/// The line where a dotted key stands: its own, or that of the inline table or section that holds it.
fn find_line(text: &str, key: &str) -> Option<usize> {
    let mut best: Option<(usize, usize)> = None;
    let mut section = String::new();
    let mut tables: Vec<String> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        let full = if let Some(header) = line.strip_prefix('[') {
            section = header.trim_start_matches('[').split(']').next().unwrap_or("").trim().to_string();
            // Of an array of tables, each is one element.
            if header.starts_with('[') {
                tables.push(section.clone());
                let before = tables.iter().filter(|name| **name == section).count() - 1;
                section.push_str(&format!("[{before}]"));
            }
            section.clone()
        } else if let Some((left, _)) = line.split_once('=').filter(|_| !line.starts_with('#')) {
            let left = left.trim().trim_matches('"');
            if section.is_empty() { left.to_string() } else { format!("{section}.{left}") }
        } else {
            continue;
        };
        let holds = key == full || key.starts_with(&format!("{full}.")) || key.starts_with(&format!("{full}["));
        if holds && best.is_none_or(|(length, _)| full.len() > length) {
            best = Some((full.len(), number + 1));
        }
    }
    best.map(|(_, line)| line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_by_key() {
        let text = "name = \"x\"\n# lr = 1\n[optim]\nlr = 1\n[data]\ntokenizer = { kind = \"bpe\" }\n";
        assert_eq!(find_line(text, "name"), Some(1));
        assert_eq!(find_line(text, "optim.lr"), Some(4));
        assert_eq!(find_line(text, "optim.eps"), Some(3));
        assert_eq!(find_line(text, "data.tokenizer.kind"), Some(6));
        assert_eq!(find_line(text, "guard.window"), None);
        let text = "[[data.mixture]]\nname = 1\n[[data.mixture]]\nname = 2\nweight = 0\n";
        assert_eq!(find_line(text, "data.mixture[0].name"), Some(2));
        assert_eq!(find_line(text, "data.mixture[1].weight"), Some(5));
        assert_eq!(find_line(text, "data.mixture[1].train"), Some(3));
    }

    #[test]
    fn overrides_are_typed() {
        let value = |given| override_of(given).unwrap().1;
        assert_eq!(value("a.b=3e-4"), toml::Value::Float(3e-4));
        assert_eq!(value("a.b= 7"), toml::Value::Integer(7));
        assert_eq!(value("a.b=true"), toml::Value::Boolean(true));
        assert_eq!(value("a.b=bf16"), toml::Value::String("bf16".into()));
        assert_eq!(value("a.b=\"x y\""), toml::Value::String("x y".into()));
        assert_eq!(value("a=1\nc=2"), toml::Value::String("1\nc=2".into()));
        assert!(override_of("nothing").is_err());
        assert!(override_of("a..b=1").is_err());
    }

    #[test]
    fn the_nearest_name_is_near() {
        assert_eq!(nearest("warmup_step", &["warmup_steps", "final_ratio"]), Some("warmup_steps"));
        assert_eq!(nearest("lrr", &["kind", "lr", "eps"]), Some("lr"));
        assert_eq!(nearest("zebra", &["kind", "lr", "eps"]), None);
    }
}
