//! Compiles the C file that calls libjpeg-turbo, against the headers that turbojpeg-sys has built it with.

fn main() {
    println!("cargo:rerun-if-changed=src/codec/jpeg/libjpeg.c");
    let include = std::env::var_os("DEP_TURBOJPEG_INCLUDE").expect("turbojpeg-sys names its headers");
    cc::Build::new()
        .file("src/codec/jpeg/libjpeg.c")
        .includes(std::env::split_paths(&include))
        .warnings(true)
        .warnings_into_errors(true)
        .compile("lamagrid_jpeg");
}
