//! Compiles the kernels for GPUs, where they are wanted.

fn main() {
    #[cfg(feature = "cuda")]
    {
        let folder = std::env::var("OUT_DIR").expect("cargo tells where to write");
        let built = cudaforge::KernelBuilder::new()
            .source_files(["src/cuda/encoder.cu", "src/cuda/decoder.cu", "src/cuda/experts.cu"])
            .watch(["common", "tensor", "attention", "draw"].map(|name| format!("src/cuda/{name}.cuh")))
            .out_dir(folder)
            .arg("-std=c++17")
            .arg("-O3")
            .build_ptx();
        built.expect("CUDA's compiler is there and takes the kernels");
    }
    #[cfg(all(feature = "emulated", not(feature = "cuda")))]
    {
        println!("cargo::rerun-if-changed=src/cuda");
        let mut compiler = cc::Build::new();
        compiler.cpp(true).std("c++17").file("src/cuda/emulator/emulator.cpp").include("src/cuda/emulator");
        // Kernels read several values as one, and threads jump from stack to stack.
        compiler.flag("-fno-strict-aliasing").flag("-U_FORTIFY_SOURCE").flag("-Wno-unknown-pragmas");
        compiler.flag("-Wno-sign-compare").flag("-Wno-unused-parameter").opt_level(2).compile("inferq_emulator");
    }
}
