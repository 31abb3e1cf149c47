package scripts

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

// TestLetGoWithoutAnAnswer: who removes the controller next must not be told that nothing is held when nobody said so.
func TestLetGoWithoutAnAnswer(t *testing.T) {
	script, err := filepath.Abs(filepath.Join(root, "hack", "let-go.sh"))
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		// fails begins the arguments of the calls that fail, always or only the first time.
		fails string
		once  bool
		ok    bool
	}{
		"all is answered":                     {ok: true},
		"whether the kind exists":             {fails: "get crd "},
		"which ranges are held":               {fails: "get changedblockranges."},
		"which claims are held":               {fails: "get persistentvolumeclaims"},
		"which claims are held, for a moment": {fails: "get persistentvolumeclaims", once: true, ok: true},
		"whether the ranges may be deleted":   {fails: "delete "},
		"which ranges are held, for a moment": {fails: "get changedblockranges.", once: true, ok: true},
	} {
		t.Run(name, func(t *testing.T) {
			failed := false
			printed, err := newKubectl(t).shell(t, t.TempDir(), []string{"PATIENCE=1"}, []string{script}, func(c call) (string, error) {
				if test.fails != "" && strings.HasPrefix(c.args, test.fails) && (!test.once || !failed) {
					failed = true
					return "", errors.New("the server is currently unable to handle the request")
				}
				if strings.HasPrefix(c.args, "get crd ") {
					return "customresourcedefinition.apiextensions.k8s.io/changedblockranges.cbt.storage.k8s.io\n", nil
				}
				return "", nil
			})
			if (err == nil) != test.ok {
				t.Errorf("it ends with %v:\n%s", err, printed)
			}
			if failed != (test.fails != "") {
				t.Errorf("no call began with %q", test.fails)
			}
		})
	}
}
