//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// exampleDeadline bounds what one example may take.
const exampleDeadline = 15 * time.Minute

// example runs the shell commands of an example's page, as they are, in the test's namespace, and returns what they print. env has the
// variables that the page leaves to its reader.
func (w *world) example(name string, env ...string) string {
	w.Helper()
	dir := filepath.Join("../../examples", name)
	script := w.shellOf(filepath.Join(dir, "README.md"))
	ctx, cancel := context.WithTimeout(context.Background(), exampleDeadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "KUBECONFIG="+w.kubeconfig(), "POPULATOR_IMAGE="+w.populatorImage()), env...)
	started := time.Now()
	out, err := cmd.CombinedOutput()
	w.Logf("%s took %s\n%s", name, time.Since(started).Round(time.Second), out)
	if err != nil {
		for _, pod := range strings.Fields(w.kubectl("get", "pods", "-o", "name")) {
			logs, _ := exec.Command("kubectl", "-n", w.ns, "logs", pod, "--all-containers", "--ignore-errors", "--prefix").CombinedOutput()
			w.Logf("%s", logs)
		}
		w.Fatalf("the commands of %s/README.md: %v", name, err)
	}
	return string(out)
}

// shellOf returns the commands of a page: its fenced blocks marked sh.
func (w *world) shellOf(page string) string {
	w.Helper()
	f, err := os.Open(page)
	if err != nil {
		w.Fatal(err)
	}
	defer func() { _ = f.Close() }() // it was only read
	var script strings.Builder
	inside := false
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		switch line := lines.Text(); {
		case line == "```sh":
			inside = true
		case strings.HasPrefix(line, "```"):
			inside = false
		case inside:
			fmt.Fprintln(&script, line)
		}
	}
	if err := lines.Err(); err != nil || script.Len() == 0 {
		w.Fatalf("%s has no commands: %v", page, err)
	}
	return script.String()
}

// kubeconfig returns the path of a copy of the kubeconfig in which the test's namespace is the current one.
func (w *world) kubeconfig() string {
	w.Helper()
	path := filepath.Join(w.TempDir(), "kubeconfig")
	config := w.run(nil, "config", "view", "--raw", "--flatten")
	if err := os.WriteFile(path, config, 0o600); err != nil {
		w.Fatal(err)
	}
	w.run(nil, "--kubeconfig", path, "config", "set-context", "--current", "--namespace", w.ns)
	return path
}

func (w *world) populatorImage() string {
	w.Helper()
	return w.kubectl("get", "deployment", "-n", populatorNS, "cbt-populator-controller",
		"-o", `jsonpath={.spec.template.spec.containers[0].env[?(@.name=="POPULATOR_IMAGE")].value}`)
}

// cbrImage is the image of kubectl-cbr.
func (w *world) cbrImage() string {
	w.Helper()
	image := os.Getenv("CBR_IMAGE")
	if image == "" {
		w.Fatal("CBR_IMAGE does not name the image of kubectl-cbr; make e2e sets it")
	}
	return image
}

func (w *world) wantLines(what, output string, want ...string) {
	w.Helper()
	for _, line := range want {
		if !strings.Contains(output, line) {
			w.Errorf("%s does not say %q", what, line)
		}
	}
}

func TestExampleParallelWorkers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	out := w.example("parallel-workers")
	w.wantLines("the page", out, "the copy is the snapshot")
	for index := range 4 {
		w.wantLines("the page", out, fmt.Sprintf("worker %d: copied ", index))
	}
}

func TestExampleListWithoutClaim(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	out := w.example("list-without-claim")
	list := w.parse([]byte(strings.SplitAfterN(out, "changed-blocks.json: OK\n", 2)[1]))
	w.wantExtents("the list without a claim", list, blocks(2, 4, 9))
	var claims corev1.PersistentVolumeClaimList
	if err := api.List(context.Background(), &claims, client.InNamespace(w.ns)); err != nil || len(claims.Items) != 1 {
		t.Errorf("%d claims, want the volume's only: %v", len(claims.Items), err)
	}
}

// TestBackupReadsWhatChanged has the kernel count what a backup of a 1 GiB volume reads of which 1 % has changed.
func TestBackupReadsWhatChanged(t *testing.T) {
	t.Parallel()
	const (
		capacity = 1 << 30
		chunk    = 128 << 10
		chunks   = capacity / 100 / chunk
	)
	w := newWorld(t)
	w.create(claim("data", "1Gi", corev1.PersistentVolumeBlock), claim("backups", "64Mi", corev1.PersistentVolumeFilesystem))
	w.tools("writer", "data")
	w.exec("writer", "dd if=/dev/urandom of=/dev/data bs=1M count=128 conv=notrunc 2>/dev/null\n"+syncDevice("/dev/data"))
	w.takeSnapshot("before", "data")
	w.exec("writer", fmt.Sprintf(`i=0; while [ $i -lt %d ]; do
  dd if=/dev/urandom of=/dev/data bs=%d count=1 seek=$((i * 97 %% %d)) conv=notrunc 2>/dev/null; i=$((i + 1)); done
`, chunks, chunk, capacity/chunk)+syncDevice("/dev/data"))
	w.takeSnapshot("after", "data")
	w.create(ranges("delta", "before", "after", binary), listClaim("list", "delta"), restored("snapshot", "1Gi", "after"))
	w.awaitBound("list", "snapshot")

	// The third field of a device's statistics is the number of 512-byte sectors read.
	sectors := `number=$(printf '%d:%d' $(stat -c '0x%t 0x%T' /dev/snapshot)); awk '{ print $3 }' /sys/dev/block/$number/stat`
	count := corev1.Container{Image: toolsImage, Command: []string{"sh", "-ec", sectors}}
	before, after := count, count
	before.Name, after.Name = "before", "after"
	w.pod("backup", []corev1.Container{before, {
		Name: "copy", Image: w.cbrImage(),
		Args: []string{"apply", "--list", "/list/changed-blocks.cbl", "--source", "/dev/snapshot", "--target", "/backups/delta.img"},
	}}, after, map[string]string{"/list": "list", "/backups": "backups", "/dev/snapshot": "snapshot"})
	var from, to int64
	w.scan(w.kubectl("logs", "backup", "-c", "before"), &from)
	w.scan(w.kubectl("logs", "backup", "-c", "after"), &to)
	read := (to - from) * 512
	w.Logf("a volume of %d bytes, of which %d have changed: the device read %d bytes, %.2f %% of the volume\n%s",
		capacity, chunks*chunk, read, 100*float64(read)/capacity, w.kubectl("logs", "backup", "-c", "copy"))
	if read < chunks*chunk || read > chunks*chunk*11/10 {
		t.Errorf("the backup has read %d bytes, want the %d that changed and at most a tenth more", read, chunks*chunk)
	}
}

func (w *world) scan(text string, to *int64) {
	w.Helper()
	if _, err := fmt.Sscan(text, to); err != nil {
		w.Fatalf("%q is no number: %v", text, err)
	}
}

// pod runs containers one after the other, as root, and waits until all have succeeded. claims names the claim for each
// path: those under /dev are devices.
func (w *world) pod(name string, first []corev1.Container, last corev1.Container, claims map[string]string) {
	w.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{
		RestartPolicy:   corev1.RestartPolicyNever,
		SecurityContext: &corev1.PodSecurityContext{RunAsUser: ptr.To[int64](0)},
		InitContainers:  first, Containers: []corev1.Container{last},
	}}
	for path, claim := range claims {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: claim, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
		}})
		for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
			for i := range containers {
				if strings.HasPrefix(path, "/dev/") {
					containers[i].VolumeDevices = append(containers[i].VolumeDevices, corev1.VolumeDevice{Name: claim, DevicePath: path})
				} else {
					containers[i].VolumeMounts = append(containers[i].VolumeMounts, corev1.VolumeMount{Name: claim, MountPath: path})
				}
			}
		}
	}
	w.create(pod)
	w.eventually("pod "+name+" has succeeded", patience, func(context.Context) (bool, string) {
		if err := w.get(name, pod); err != nil {
			return false, err.Error()
		}
		if pod.Status.Phase == corev1.PodFailed {
			w.Fatalf("pod %s failed:\n%s", name, w.kubectl("logs", name, "--all-containers", "--ignore-errors"))
		}
		return pod.Status.Phase == corev1.PodSucceeded, string(pod.Status.Phase)
	})
}
