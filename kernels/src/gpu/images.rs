//! The kernels as text and as images: what `build-kernels` makes, the library embeds, and a device loads.
//!
//! A *module* is one `.cu` with the constants it is compiled for; it holds several kernels. For each architecture of
//! [`ARCHS`] there is one compressed cubin under `prebuilt/`, and one compressed PTX, of sm_80: the simulator runs it, and
//! a driver compiles it for a card that is newer than this table. `kernels.lock` says from which source they were made.
//!
//! Where a source differs from the lock and the machine has NVRTC, the module is compiled at start, into a cache; where it
//! has not, loading says what to do.

use super::nvrtc::Compiler;
use std::{borrow::Cow, fmt::Write as _, io::Read, path::PathBuf, sync::OnceLock};

include!(concat!(env!("OUT_DIR"), "/prebuilt.rs"));

const LOCK: &str = include_str!("../../kernels.lock");
const PRELUDE: &str = include_str!("../../cuda/prelude.cuh");

/// One planted bug of `tests/mutants/list`.
#[derive(Clone, Debug)]
pub struct Mutant {
    /// Its name, and that of its image.
    pub name: String,
    /// The module it is planted in.
    pub module: &'static Module,
    /// Text of the `.cu` that goes.
    pub old: String,
    /// Text that comes.
    pub new: String,
}

/// Reads a list of planted bugs: `mutant NAME MODULE`, then lines that go after `-` and come after `+`.
pub fn mutants(list: &str) -> Vec<Mutant> {
    let mut all: Vec<Mutant> = Vec::new();
    for line in list.lines() {
        if let Some((name, of)) = line.strip_prefix("mutant ").and_then(|rest| rest.split_once(' ')) {
            all.push(Mutant { name: name.into(), module: module(of), old: String::new(), new: String::new() });
        } else if let Some(last) = all.last_mut() {
            let to = match line.get(..1) {
                Some("-") => &mut last.old,
                Some("+") => &mut last.new,
                _ => continue,
            };
            to.push_str(&line[1..]);
            to.push('\n');
        }
    }
    all
}

/// What images are made for. A cubin runs on its own major version, from its minor version on; one with `a` there alone.
pub const ARCHS: [&str; 6] = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120"];
/// What the kept PTX is made for.
pub const PTX_ARCH: &str = "sm_80";

/// One `.cu` with its constants.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// Name of its images.
    pub name: &'static str,
    /// File under `cuda/`.
    pub file: &'static str,
    /// The constant HEAD, where the file wants one.
    pub head: Option<u32>,
    source: &'static str,
}

macro_rules! module {
    ($name:literal) => {
        module!($name, concat!($name, ".cu"), None, include_str!(concat!("../../cuda/", $name, ".cu")))
    };
    ($name:literal, $file:literal, $head:literal) => {
        module!($name, $file, Some($head), include_str!(concat!("../../cuda/", $file)))
    };
    ($name:expr, $file:expr, $head:expr, $source:expr) => {
        Module { name: $name, file: $file, head: $head, source: $source }
    };
}

/// Every module.
pub const MODULES: &[Module] = &[
    module!("adamw"),
    module!("attention_delta"),
    module!("attention_mma_64", "attention_mma.cu", 64),
    module!("attention_mma_80", "attention_mma.cu", 80),
    module!("attention_mma_96", "attention_mma.cu", 96),
    module!("attention_mma_128", "attention_mma.cu", 128),
    module!("attention_mma_256", "attention_mma.cu", 256),
    module!("attention_plain_64", "attention_plain.cu", 64),
    module!("attention_plain_128", "attention_plain.cu", 128),
    module!("attention_plain_256", "attention_plain.cu", 256),
    module!("attention_plain_512", "attention_plain.cu", 512),
    module!("cast"),
    module!("chunk_topk"),
    module!("embedding"),
    module!("global_norm"),
    module!("matmul_mma"),
    module!("matmul_plain"),
    module!("rmsnorm"),
    module!("rope"),
    module!("swiglu"),
    module!("xent"),
];

/// A module called `name`.
pub fn module(name: &str) -> &'static Module {
    MODULES.iter().find(|m| m.name == name).unwrap_or_else(|| panic!("gpu: no module {name}"))
}

impl Module {
    /// What the compiler reads, with the embedded text.
    pub fn text(&self) -> String {
        whole_text(PRELUDE, self.file, self.source)
    }

    /// The constants, as options of the compiler.
    pub fn defines(&self) -> Vec<String> {
        self.head.map(|head| format!("-DHEAD={head}")).into_iter().collect()
    }

    /// Whether the images were made from the embedded text.
    pub fn is_current(&self) -> bool {
        let wanted = format!("{} {}", self.name, hash(&self.text(), &self.defines()));
        LOCK.lines().any(|line| line.strip_prefix("module ").is_some_and(|rest| rest == wanted))
    }

    /// The cubin for a card of that compute capability, or else the PTX, each as a driver takes it.
    pub fn for_card(&self, major: u32, minor: u32) -> Result<Vec<u8>, String> {
        match arch_of(major, minor) {
            Some(arch) => self.image(arch, arch),
            None => self.ptx().map(|text| text.into_bytes().into_iter().chain([0]).collect()),
        }
    }

    /// The PTX for sm_80.
    pub fn ptx(&self) -> Result<String, String> {
        let bytes = self.image("ptx", PTX_ARCH)?;
        String::from_utf8(bytes).map_err(|_| format!("kernel {}: its PTX is not text", self.name))
    }

    /// The image of kind `kind` (`ptx` or an architecture), unpacked or just compiled for `arch`.
    fn image(&self, kind: &str, arch: &str) -> Result<Vec<u8>, String> {
        if self.is_current() {
            let file = format!("{}.{kind}.z", self.name);
            let packed = PREBUILT.iter().find(|(name, _)| *name == file);
            if let Some((_, bytes)) = packed {
                return unpack(bytes).map_err(|e| format!("kernel {file}: {e}"));
            }
        }
        let cached = cache(&format!("{}-{}.{kind}", self.name, hash(&self.text(), &self.defines())));
        if let Some(bytes) = cached.as_ref().and_then(|path| std::fs::read(path).ok()) {
            return Ok(bytes);
        }
        static COMPILER: OnceLock<Option<Compiler>> = OnceLock::new();
        let Some(compiler) = COMPILER.get_or_init(Compiler::find) else {
            return Err(format!(
                "kernel {} has no image made from cuda/{} as it is, and there is no NVRTC to make one: run \
                 `cargo run -p esker-kernels --bin build-kernels`, or name its folder in ESKER_NVRTC",
                self.name, self.file
            ));
        };
        let compiled = compiler.compile(self.file, &self.text(), arch, &self.defines())?;
        let bytes = if kind == "ptx" { compiled.ptx.into_bytes() } else { compiled.cubin };
        if let Some(path) = cached {
            // A cache that cannot be written costs time at the next start, nothing else.
            let _ = path.parent().map(std::fs::create_dir_all);
            let _ = std::fs::write(path, &bytes);
        }
        Ok(bytes)
    }
}

/// The architecture whose cubin runs on a card of that compute capability.
fn arch_of(major: u32, minor: u32) -> Option<&'static str> {
    match (major, minor) {
        (8, 9) => Some("sm_89"),
        (8, 6..=8) => Some("sm_86"),
        (8, 0..=5) => Some("sm_80"),
        (9, 0) => Some("sm_90a"),
        (10, 0) => Some("sm_100a"),
        (12, _) => Some("sm_120"),
        _ => None,
    }
}

/// The prelude and one file, as the compiler reads them: lines in its messages are the file's own.
pub fn whole_text(prelude: &str, file: &str, source: &str) -> String {
    format!("#line 1 \"prelude.cuh\"\n{prelude}\n#line 1 \"{file}\"\n{source}")
}

/// Names a text with its constants and options, in 16 digits.
pub fn hash(text: &str, defines: &[String]) -> String {
    let mut all = text.to_owned();
    for option in super::nvrtc::OPTIONS.iter().copied().chain(defines.iter().map(String::as_str)) {
        write!(all, "\n{option}").expect("a string grows");
    }
    short_hash(all.as_bytes())
}

/// The first 16 digits of a blake3.
pub fn short_hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..16].to_owned()
}

/// Packs an image: the same bytes for the same input.
pub fn pack(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut to = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    to.write_all(bytes).and_then(|()| to.finish()).expect("a vector grows")
}

/// Unpacks an image.
pub fn unpack(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    flate2::read::ZlibDecoder::new(bytes).read_to_end(&mut out)?;
    Ok(out)
}

/// Where an image that was compiled at start is kept.
fn cache(name: &str) -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(base.join("esker/kernels").join(name))
}

/// Lines of `kernels.lock`, without comments.
pub fn lock_lines() -> impl Iterator<Item = Cow<'static, str>> {
    LOCK.lines().filter(|l| !l.starts_with('#')).map(Cow::Borrowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_has_images_made_from_its_source() {
        for m in MODULES {
            assert!(m.is_current(), "{}: cuda/{} was changed; run build-kernels", m.name, m.file);
            for kind in ARCHS.iter().copied().chain(["ptx"]) {
                assert!(m.image(kind, PTX_ARCH).is_ok(), "{}.{kind}", m.name);
            }
        }
    }

    #[test]
    fn no_kernel_spills_or_has_a_stack() {
        let kernels: Vec<_> = lock_lines().filter(|l| l.starts_with("  ")).collect();
        assert!(kernels.len() > 6 * MODULES.len());
        for line in kernels {
            assert!(line.contains(" stack 0 ") && line.contains(" spills 0 "), "{line}");
        }
    }

    #[test]
    fn a_card_gets_the_image_of_its_own_family() {
        assert_eq!(arch_of(9, 0), Some("sm_90a"));
        assert_eq!(arch_of(8, 7), Some("sm_86"));
        assert_eq!(arch_of(12, 1), Some("sm_120"));
        assert_eq!(arch_of(13, 0), None);
    }
}
