//! NVIDIA's run-time compiler, where the machine has it: CUDA C++ in, a cubin, its PTX and the report of ptxas out.
//!
//! Nothing links against it. It is looked for in this order: the folder that `ESKER_NVRTC` names; `CUDA_HOME` and
//! `CUDA_PATH`, `lib64`; the site-packages of Python (`nvidia/cu13/lib`, `nvidia/cuda_nvrtc/lib`) under `VIRTUAL_ENV`,
//! `target/nvrtc`, the home folder and the system; last, what the dynamic loader finds by itself. The library opens a
//! second one, libnvrtc-builtins, by its bare name, so that one is opened first. cudarc's binding tries a fixed list of
//! names which lacks version 13; the interface is nine functions, so they are bound here.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    path::{Path, PathBuf},
    ptr,
};

/// What one compilation gives.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Machine code for one architecture.
    pub cubin: Vec<u8>,
    /// The text it was made from.
    pub ptx: String,
    /// What ptxas reports of each kernel.
    pub entries: Vec<Entry>,
    /// Lines of the log that warn.
    pub warnings: Vec<String>,
}

/// What one kernel needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Name of the kernel.
    pub name: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of a thread's stack.
    pub stack: u32,
    /// Bytes written to local memory, and read back, because registers ran out.
    pub spills: u32,
    /// Bytes of static shared memory.
    pub shared: u32,
    /// Instructions of the tensor cores in its PTX.
    pub tensor: u32,
}

type Program = *mut c_void;

/// The library's functions.
#[derive(Debug)]
pub struct Compiler {
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    log: Text,
    ptx: Text,
    cubin: Text,
}

/// A function that tells a size, and one that fills so many bytes.
#[derive(Clone, Copy, Debug)]
struct Text {
    size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    fill: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
}

impl Compiler {
    /// Opens the library, if the machine has it.
    pub fn find() -> Option<Compiler> {
        let handle = folders().iter().find_map(|folder| open_in(folder)).or_else(|| {
            ["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"].iter().find_map(|name| open(Path::new(name)))
        })?;
        // SAFETY: the signatures are those of nvrtc.h, unchanged since CUDA 11.2.
        unsafe {
            Some(Compiler {
                create: symbol(handle, c"nvrtcCreateProgram")?,
                compile: symbol(handle, c"nvrtcCompileProgram")?,
                destroy: symbol(handle, c"nvrtcDestroyProgram")?,
                log: Text {
                    size: symbol(handle, c"nvrtcGetProgramLogSize")?,
                    fill: symbol(handle, c"nvrtcGetProgramLog")?,
                },
                ptx: Text { size: symbol(handle, c"nvrtcGetPTXSize")?, fill: symbol(handle, c"nvrtcGetPTX")? },
                cubin: Text { size: symbol(handle, c"nvrtcGetCUBINSize")?, fill: symbol(handle, c"nvrtcGetCUBIN")? },
            })
        }
    }

    /// Compiles `source` for `arch` (as `sm_80`); `Err` is the compiler's log.
    pub fn compile(&self, name: &str, source: &str, arch: &str, defines: &[String]) -> Result<Compiled, String> {
        let text = |s: &str| CString::new(s).map_err(|_| format!("{name}: a zero byte in the source"));
        let (source, file) = (text(source)?, text(name)?);
        let mut options = vec![text(&format!("--gpu-architecture={arch}"))?];
        for option in OPTIONS {
            options.push(text(option)?);
        }
        for define in defines {
            options.push(text(define)?);
        }
        let options: Vec<_> = options.iter().map(|o| o.as_ptr()).collect();
        let mut program = ptr::null_mut();
        // SAFETY: the strings end in zero and outlive the call; there are no headers.
        let code = unsafe { (self.create)(&mut program, source.as_ptr(), file.as_ptr(), 0, ptr::null(), ptr::null()) };
        if code != 0 {
            return Err(format!("{name}: nvrtcCreateProgram gave {code}"));
        }
        // SAFETY: the program was just made and the options outlive the call.
        let code = unsafe { (self.compile)(program, options.len() as c_int, options.as_ptr()) };
        let log = String::from_utf8_lossy(&self.take(self.log, program)).into_owned();
        let result = if code == 0 {
            let ptx = String::from_utf8_lossy(&self.take(self.ptx, program)).into_owned();
            let cubin = self.take(self.cubin, program);
            Ok(report(cubin, ptx, &log))
        } else {
            Err(log)
        };
        // SAFETY: made above, and not used again.
        unsafe { (self.destroy)(&mut program) };
        result
    }

    /// One text of a program, without the zero that ends it.
    fn take(&self, text: Text, program: Program) -> Vec<u8> {
        let mut size = 0;
        // SAFETY: the program lives, and `size` is where the library writes.
        if unsafe { (text.size)(program, &mut size) } != 0 || size == 0 {
            return Vec::new();
        }
        let mut bytes = vec![0u8; size];
        // SAFETY: as many bytes as the library asked for.
        unsafe { (text.fill)(program, bytes.as_mut_ptr().cast()) };
        // A cubin is bytes, a text ends in one zero.
        if !bytes.starts_with(b"\x7fELF") && bytes.last() == Some(&0) {
            bytes.pop();
        }
        bytes
    }
}

/// What every kernel is compiled with.
pub const OPTIONS: [&str; 4] =
    ["--std=c++17", "-default-device", "--ptxas-options=-v", "--ptxas-options=--warn-on-spills"];

/// Reads the report of ptxas: for each kernel a line that names it, one of its stack and spills, one of its registers.
fn report(cubin: Vec<u8>, ptx: String, log: &str) -> Compiled {
    let mut entries: Vec<Entry> = Vec::new();
    let mut warnings = Vec::new();
    for line in log.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let name = rest.split('\'').next().unwrap_or_default().to_owned();
            let tensor = tensor_instructions(&ptx, &name);
            entries.push(Entry { name, tensor, ..Entry::default() });
        } else if let Some(entry) = entries.last_mut() {
            let before = |what: &str| number_before(line, what);
            if let Some(bytes) = before(" bytes stack frame") {
                entry.stack = bytes;
                entry.spills = before(" bytes spill stores").unwrap_or(0) + before(" bytes spill loads").unwrap_or(0);
            }
            if let Some(count) = before(" registers") {
                entry.registers = count;
                entry.shared = before(" bytes smem").unwrap_or(0);
            }
        }
        let low = line.to_lowercase();
        if low.contains("warning") || ["C7508", "C7510", "C7512", "C7514"].iter().any(|code| line.contains(code)) {
            warnings.push(line.trim().to_owned());
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Compiled { cubin, ptx, entries, warnings }
}

/// The number that stands before `what`.
fn number_before(line: &str, what: &str) -> Option<u32> {
    let head = &line[..line.find(what)?];
    let digits = head.len() - head.chars().rev().take_while(char::is_ascii_digit).count();
    head[digits..].parse().ok()
}

/// How many `mma` and `wgmma` the kernel called `name` has in a PTX text.
fn tensor_instructions(ptx: &str, name: &str) -> u32 {
    let Some(start) = ptx.find(&format!(".entry {name}(")) else { return 0 };
    let body = &ptx[start..];
    let end = body.find("\n}").unwrap_or(body.len());
    body[..end].lines().filter(|l| l.trim_start().starts_with("mma.sync") || l.contains("wgmma.mma_async")).count()
        as u32
}

/// Where the library may lie, in order.
fn folders() -> Vec<PathBuf> {
    let from = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let mut folders: Vec<PathBuf> = from("ESKER_NVRTC").into_iter().collect();
    folders.extend(["CUDA_HOME", "CUDA_PATH"].iter().filter_map(|n| Some(from(n)?.join("lib64"))));
    let homes = [
        from("VIRTUAL_ENV"),
        Some(PathBuf::from("target/nvrtc")),
        from("HOME").map(|h| h.join(".local")),
        Some("/usr/local".into()),
        Some("/usr".into()),
    ];
    for lib in homes.into_iter().flatten().map(|home| home.join("lib")) {
        let mut pythons: Vec<PathBuf> = std::fs::read_dir(&lib)
            .into_iter()
            .flatten()
            .filter_map(|e| Some(e.ok()?.path()))
            .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("python3")))
            .collect();
        pythons.sort();
        for packages in pythons.iter().flat_map(|p| [p.join("site-packages"), p.join("dist-packages")]) {
            folders.extend([packages.join("nvidia/cu13/lib"), packages.join("nvidia/cuda_nvrtc/lib")]);
        }
    }
    folders
}

/// Opens the builtins and then the compiler of a folder.
fn open_in(folder: &Path) -> Option<*mut c_void> {
    let named = |start: &str| {
        let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
            .ok()?
            .filter_map(|e| Some(e.ok()?.path()))
            .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(start)))
            .collect();
        found.sort();
        found.pop()
    };
    let (builtins, compiler) = (named("libnvrtc-builtins.so"), named("libnvrtc.so")?);
    if let Some(builtins) = builtins {
        open(&builtins)?;
    }
    open(&compiler)
}

/// Opens a library and keeps it open.
fn open(path: &Path) -> Option<*mut c_void> {
    let path = CString::new(path.to_str()?).ok()?;
    // SAFETY: loading runs the library's own start-up code, which NVIDIA's libraries allow at any time.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    (!handle.is_null()).then_some(handle)
}

/// A function of an open library.
///
/// # Safety
/// `F` must be the function's own type.
unsafe fn symbol<F: Copy>(handle: *mut c_void, name: &CStr) -> Option<F> {
    assert_eq!(size_of::<F>(), size_of::<*mut c_void>(), "nvrtc: a function pointer");
    // SAFETY: the handle is open, the name ends in zero.
    let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
    // SAFETY: an address of the size of F, whose type the caller vouches for.
    (!address.is_null()).then(|| unsafe { std::mem::transmute_copy(&address) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_of_ptxas_is_read() {
        let log = "ptxas info    : Compiling entry function 'f' for 'sm_80'\n\
                   ptxas info    : Function properties for f\n\
                   ptxas         .     8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
                   ptxas info    : Used 40 registers, used 1 barriers, 384 bytes smem, 376 bytes cmem[0]\n";
        let ptx = ".visible .entry f(\n)\n{\n\tmma.sync.aligned x;\n\tmma.sync.aligned y;\n}\n";
        let c = report(Vec::new(), ptx.into(), log);
        let want = Entry { name: "f".into(), registers: 40, stack: 8, spills: 16, shared: 384, tensor: 2 };
        assert_eq!(c.entries, [want]);
    }
}
