package scripts

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// TestGuideRefusesADamagedList: the pod of the guide prints no list that its checksum does not fit, and fails.
func TestGuideRefusesADamagedList(t *testing.T) {
	t.Parallel()
	lists := t.TempDir()
	var pod corev1.Pod
	if err := yaml.UnmarshalStrict([]byte(replaced(t, textOf(t, "guide/5-backup-pod.yaml"), "/lists/", lists+"/")), &pod); err != nil {
		t.Fatal(err)
	}
	names := []string{"delta", "allocated-1", "allocated-2"}
	for _, name := range names {
		path := filepath.Join(lists, name, "changed-blocks.json")
		raw := listOf(t, path, blocklist.JSON, "", name)
		if err := os.WriteFile(path+".sha256", fmt.Appendf(nil, "%x  changed-blocks.json\n", sha256.Sum256(raw)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if err := runContainer(t, pod.Spec.Containers[0], &out); err != nil || strings.Count(out.String(), "changed-blocks.json: OK\n") != len(names) {
		t.Fatalf("%v:\n%s", err, out.String())
	}
	path := filepath.Join(lists, names[1], "changed-blocks.json")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)/2] ^= 1
	if err := os.WriteFile(path, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	if err := runContainer(t, pod.Spec.Containers[0], &out); err == nil {
		t.Errorf("a flipped bit in %s, and the pod succeeds:\n%s", path, out.String())
	}
	if strings.Contains(out.String(), `"target_snapshot": "`+names[1]) {
		t.Errorf("the damaged list is printed:\n%s", out.String())
	}
}
