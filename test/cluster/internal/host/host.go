// Package host checks that the cluster can run on this machine, and installs
// the Debian packages that it needs.
package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/cbt-populator/cbt-populator/test/cluster/internal/images"
)

// Check returns what is missing to run a cluster here, in one sentence.
func Check() error {
	if runtime.GOOS != "linux" || (runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64") {
		return fmt.Errorf("the local cluster needs Linux on amd64 or arm64; this is %s on %s", runtime.GOOS, runtime.GOARCH)
	}
	if os.Geteuid() != 0 {
		return errors.New("the local cluster needs root, for namespaces, mounts and loop devices: run it with sudo")
	}
	return nil
}

// requirement is a Debian package and the proof that it is installed.
type requirement struct {
	pkg     string
	present func() bool
}

func command(name string) func() bool {
	return func() bool { _, err := lookPath(name); return err == nil }
}

func file(path string) func() bool {
	return func() bool { _, err := os.Stat(path); return err == nil }
}

func requirements() []requirement {
	needed := []requirement{
		{"containerd", command("containerd")},
		{"runc", command("runc")},
		{"containernetworking-plugins", file("/usr/lib/cni/bridge")},
		{"iptables", command("iptables")},
		{"conntrack", command("conntrack")},
		{"iproute2", command("ip")},
		{"e2fsprogs", command("mkfs.ext4")},
		{"util-linux", command("losetup")},
		{"mount", command("mount")},
		{"busybox-static", func() bool { return images.Static(images.Busybox) }},
	}
	// A kernel without modules has everything built in, or never will have it.
	if _, err := os.Stat("/lib/modules"); err == nil {
		needed = append(needed, requirement{"kmod", command("modprobe")})
	}
	return needed
}

// systemPath is where Debian keeps what the cluster calls; a login shell's
// PATH may lack the sbin folders.
const systemPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Path returns the PATH for the cluster's processes.
func Path() string { return systemPath }

func lookPath(name string) (string, error) {
	for _, dir := range filepath.SplitList(systemPath) {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
}

// Prepare installs the missing packages, without starting the services that
// come with them, and loads kernel modules where there are any.
func Prepare(ctx context.Context, say func(string)) error {
	if missing := absent(); len(missing) > 0 {
		if err := install(ctx, say, missing); err != nil {
			return err
		}
		if still := absent(); len(still) > 0 {
			return fmt.Errorf("these Debian packages are installed but do not provide what they should: %s", strings.Join(still, ", "))
		}
	}
	if modprobe, err := lookPath("modprobe"); err == nil {
		for _, module := range []string{"overlay", "loop", "bridge", "veth", "br_netfilter", "nf_conntrack", "iptable_nat"} {
			// Whatever is built in or does not exist shows itself when it is used.
			_ = exec.CommandContext(ctx, modprobe, "--quiet", module).Run()
		}
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		return errors.New("the sample CSI driver needs loop devices, and this kernel has none (no /dev/loop-control)")
	}
	return nil
}

func absent() []string {
	var missing []string
	for _, r := range requirements() {
		if !r.present() {
			missing = append(missing, r.pkg)
		}
	}
	return missing
}

func install(ctx context.Context, say func(string), packages []string) (err error) {
	if _, err := lookPath("apt-get"); err != nil {
		return fmt.Errorf("the local cluster runs on Debian and Ubuntu; on another system, install what these packages hold: %s", strings.Join(packages, ", "))
	}
	say("installing Debian packages: " + strings.Join(packages, " "))
	allow, err := forbidServices()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, allow()) }()
	for _, args := range [][]string{
		{"update", "-q"},
		append([]string{"install", "-q", "-y", "--no-install-recommends"}, packages...),
	} {
		cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-o", "DPkg::Lock::Timeout=300"}, args...)...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if output, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", args[0], err, tail(string(output), 15))
		}
	}
	return nil
}

// forbidServices makes Debian's packages leave their services stopped, as
// policy-rc.d is there for, and returns how to undo it.
func forbidServices() (func() error, error) {
	const policy = "/usr/sbin/policy-rc.d"
	f, err := os.OpenFile(policy, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if errors.Is(err, fs.ErrExist) {
		// The machine has a policy of its own, which stands.
		return func() error { return nil }, nil
	}
	if err != nil {
		return nil, fmt.Errorf("keep services from starting: %w", err)
	}
	_, err = f.WriteString("#!/bin/sh\nexit 101\n")
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("keep services from starting: %w", err), os.Remove(policy))
	}
	return func() error { return os.Remove(policy) }, nil
}

func tail(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
