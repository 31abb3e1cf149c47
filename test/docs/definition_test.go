package docs

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDefinitionOfMetadataServices: the page has applied what the controller was compiled against, and the README leads there.
func TestDefinitionOfMetadataServices(t *testing.T) {
	t.Parallel()
	const module = "github.com/kubernetes-csi/external-snapshot-metadata/client"
	cmd := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Version}} {{.Dir}}", module)
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	version, dir, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	all := pages(t)
	applied := regexp.MustCompile(`kubectl apply -f https://raw\.githubusercontent\.com/kubernetes-csi/external-snapshot-metadata/(\S+?)/client/(\S+)`).FindStringSubmatch(all["docs/operations.md"])
	if applied == nil {
		t.Fatal("docs/operations.md does not say how the definition of SnapshotMetadataServices is installed")
	}
	if applied[1] != version {
		t.Errorf("docs/operations.md installs the definition of %s, go.mod has %s", applied[1], version)
	}
	if _, err := os.Stat(filepath.Join(dir, applied[2])); err != nil {
		t.Errorf("docs/operations.md applies %s: %v", applied[2], err)
	}
	if !strings.Contains(all["README.md"], "docs/operations.md#what-the-cluster-needs)") {
		t.Error("README.md does not say what a cluster needs")
	}
}
