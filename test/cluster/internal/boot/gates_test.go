package boot

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestGates(t *testing.T) {
	got, err := gates("A=true, B=false").parse()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]bool{"A": true, "B": false}, got); diff != "" {
		t.Error(diff)
	}
	for _, wrong := range []string{"A", "A=", "=true", "A=on", "A=true,,"} {
		if err := CheckGates(wrong); err == nil || !strings.Contains(err.Error(), "NAME=true") {
			t.Errorf("%q passes: %v", wrong, err)
		}
	}
	if gates("").flag() != nil || gates("").crossNamespace() || gates(crossNamespaceGate+"=false").crossNamespace() {
		t.Error("a gate is on that nobody asked for")
	}
	if !gates("A=false," + crossNamespaceGate + "=true").crossNamespace() {
		t.Error("the provisioner is not told")
	}
}
