#!/usr/bin/env bash
# Builds the fuzz targets and runs each from its corpus for FUZZ_SECONDS. What a target stops at is a bug: its input is
# kept in the target folder. `run.sh grow` then chooses the corpus anew, from it and from what the runs found: inputs that
# together reach the most code.
set -eu
cd "$(dirname "$0")"
target_dir=$(realpath -m "${CARGO_TARGET_DIR:-../../target}")/fuzz
seconds=${FUZZ_SECONDS:-60}
corpus_files_max=50
targets=$(ls corpus)

# Flags from outside would replace those for coverage.
env -u RUSTFLAGS -u CARGO_BUILD_TARGET CARGO_TARGET_DIR="$target_dir" cargo build --locked --release
programs=$target_dir/$(rustc -vV | sed -n 's/^host: //p')/release
# Files without a name, which are many times faster in memory.
[ -w /dev/shm ] && export TMPDIR=/dev/shm

fuzz() {
    local log="$target_dir/$1.log" limits="-max_len=4096 -timeout=10 -rss_limit_mb=1024"
    mkdir -p "$target_dir/found/$1"
    if "$programs/$1" $limits -max_total_time="$seconds" -dict=words.dict -artifact_prefix="$target_dir/$1-" \
        "$target_dir/found/$1" "corpus/$1" >"$log" 2>&1; then
        echo "$1: $(grep -a DONE "$log" | tr -s '\t ' ' ')"
    else
        tail -n 40 "$log" >&2
        echo "$1: a bug; run $programs/$1 with the file named above to see it again" >&2
        return 1
    fi
}
export -f fuzz
export programs seconds target_dir
printf '%s\n' $targets | xargs -P "$(nproc)" -I{} bash -euc 'fuzz {}'

[ "${1:-}" = grow ] || exit 0
for target in $targets; do
    chosen=$(mktemp -d "$target_dir/chosen.XXXXXX")
    "$programs/$target" -set_cover_merge=1 -use_counters=0 "$chosen" "corpus/$target" "$target_dir/found/$target" 2>/dev/null
    # They are written in the order in which each adds most.
    (cd "$chosen" && ls -tr | tail -n "+$((corpus_files_max + 1))" | xargs -r rm)
    rm -r "corpus/$target" "$target_dir/found/$target"
    mv "$chosen" "corpus/$target"
    chmod 755 "corpus/$target"
    echo "$target: $(ls "corpus/$target" | wc -l) files"
done
