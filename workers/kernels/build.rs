//! Compiles the kernels for GPUs, where they are wanted.

fn main() {
    #[cfg(feature = "cuda")]
    {
        let folder = std::env::var("OUT_DIR").expect("cargo tells where to write");
        let built = cudaforge::KernelBuilder::new()
            .source_files(["src/cuda/encoder.cu", "src/cuda/decoder.cu"])
            .out_dir(folder)
            .arg("-std=c++17")
            .arg("-O3")
            .build_ptx();
        built.expect("CUDA's compiler is there and takes the kernels");
    }
}
