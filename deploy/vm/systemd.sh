#!/usr/bin/env bash
# Makes the file system of a small Debian with systemd once, from the packages of this machine's release, and prints
# where it is: the tests of the units in deploy/systemd boot it with kernel.sh's kernel. Nothing is installed here.
# A test adds its own programs as a second archive; /bin, /lib and the like are links into /usr. Users: root and
# `worker` (1000), without passwords; the shell and its tools are busybox.
#   usage: deploy/vm/systemd.sh     the path of the cpio archive is printed on stdout, progress on stderr
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${SAMZA_CACHE:-$HOME/.cache/samza-rs}/vm
image=$cache/systemd-$(sha256sum "$here/systemd.sh" | head -c 12).cpio
"$here/../install-packages.sh" vm >&2
if [ -f "$image" ]; then echo "$image"; exit 0; fi
mkdir -p "$cache"
exec 9>"$cache/lock-systemd"
flock 9                                     # two at once: the second waits and finds it done
if [ -f "$image" ]; then echo "$image"; exit 0; fi
echo "vm: fetching Debian's systemd once (20 MB) into $cache" >&2
work=$(mktemp -d "$cache/systemd.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

# apt works out what a machine without any package needs.
mkdir -p archives/partial
touch status
fetch() {
  apt-get install -y -qq --download-only --no-install-recommends \
    -o Dir::State::status="$work/status" -o Dir::Cache::archives="$work/archives" -o APT::Sandbox::User=root \
    -o Debug::NoLocking=1 systemd dbus libpam-systemd >&2
}
fetch || { apt-get update -qq >&2; fetch; }

mkdir -p tree/usr/{bin,sbin,lib,lib64}
for folder in bin sbin lib lib64; do ln -s "usr/$folder" "tree/$folder"; done
for package in archives/*.deb; do
  case ${package#archives/} in               # what only installing and configuring needs
    perl* | libperl* | *-perl_* | dpkg_* | tar_* | usrmerge* | debconf* | init-system-helpers* | gcc-* | adduser* | \
    passwd* | libdb5* | libgdbm* | libsemanage* | libsepol* | dmsetup*) continue ;;
  esac
  dpkg --fsys-tarfile "$package" | tar -x -C tree --keep-directory-symlink
done
cd tree
rm -rf usr/share/{bash-completion,doc,i18n,lintian,locale,man,zsh} usr/lib/*/gconv usr/lib/udev
# No generators: they would wait for consoles and disks, which take udev.
rm -rf usr/lib/systemd/{catalog,system-generators,user-generators}
mkdir -p proc sys dev tmp run root home/worker var/tmp
cp /bin/busybox usr/bin/busybox
for tool in $(usr/bin/busybox --list); do
  [ -e "usr/bin/$tool" ] || [ -e "usr/sbin/$tool" ] || ln -s busybox "usr/bin/$tool"
done
cat > etc/passwd <<'EOF'
root:x:0:0::/root:/bin/sh
messagebus:x:100:100::/:/bin/false
worker:x:1000:1000::/home/worker:/bin/sh
nobody:x:65534:65534::/:/bin/false
EOF
cat > etc/group <<'EOF'
root:x:0:
tty:x:5:
utmp:x:43:
messagebus:x:100:
systemd-journal:x:101:
worker:x:1000:
nogroup:x:65534:
EOF
# What libpam-runtime writes when it is configured, without passwords.
for kind in auth account password session; do echo "$kind required pam_permit.so" > etc/pam.d/common-$kind; done
cp etc/pam.d/common-session etc/pam.d/common-session-noninteractive
echo vm > etc/hostname
echo 5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a > etc/machine-id
ln -s /usr/lib/systemd/system/multi-user.target etc/systemd/system/default.target
find . | cpio --quiet -o -H newc -R 0:0 > ../image
cd ..
rm -f "$cache"/systemd-*.cpio                # those that an older script made
mv image "$image"
echo "$image"
