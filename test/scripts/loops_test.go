package scripts

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var loop = regexp.MustCompile("(?m)^ *for ")

// loops returns the blocks with a loop of an example's page.
func loops(t *testing.T, page string) []string {
	t.Helper()
	var found []string
	for _, b := range block.FindAllStringSubmatch(textOf(t, page+"/README.md"), -1) {
		if loop.MatchString(b[1]) {
			found = append(found, b[1])
		}
	}
	if len(found) == 0 {
		t.Fatalf("%s/README.md has no loop", page)
	}
	return found
}

// pasted pastes a block into a shell as its user has it, with no option set, and more below it. It returns the calls of kubectl, those that
// apply a manifest with its names, the block's status, and what was printed. What failing matches fails.
func pasted(t *testing.T, page, text, failing string, env ...string) (calls []string, status, printed string) {
	t.Helper()
	names := regexp.MustCompile(`(?m)^  name: (.+)$`)
	env = append(env, "CBR_IMAGE=kubectl-cbr")
	script := filepath.Join(t.TempDir(), "typed")
	if err := os.WriteFile(script, []byte(text+"echo \"status $?, and the shell is still here\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.Abs(filepath.Join(root, "examples", page))
	if err != nil {
		t.Fatal(err)
	}
	printed, err = newKubectl(t).shell(t, dir, env, []string{"bash", "--norc", script}, func(c call) (string, error) {
		line := c.args
		for _, m := range names.FindAllStringSubmatch(c.input, -1) {
			line += " " + m[1]
		}
		calls = append(calls, line)
		if failing != "" && regexp.MustCompile(failing).MatchString(line) {
			return "", errors.New("kubectl fails")
		}
		return "copied, or a handle\n", nil
	})
	m := regexp.MustCompile(`status (\d+), and the shell is still here\n$`).FindStringSubmatch(printed)
	if err != nil || m == nil {
		t.Fatalf("the user's shell has gone: %v\n%s", err, printed)
	}
	return calls, m[1], printed
}

// TestLoopsStop: a loop of a page ends at the first command that fails, and says so by its status; the shell into which it was typed
// goes on.
func TestLoopsStop(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		page          string
		block         int
		failing, next string
	}{
		{"restore", 0, "^apply -f - restore-tuesday$", "wait .*restore-tuesday|wednesday"},
		{"restore", 0, "^wait .* job/restore-tuesday ", "compare-tuesday|wednesday"},
		{"restore", 0, "^wait .* job/compare-tuesday ", "logs job/compare-tuesday$|wednesday"},
		{"restore", 0, "^logs job/compare-tuesday$", "wednesday"},
		{"restore", 0, "^wait .* job/wipe ", "restore-monday"},
		{"restore", 0, "^delete job ", "^apply"},
		{"restore", 0, "^wait .* job/check-chain ", "restore-monday"},
		{"increments", 0, "^exec writer ", "tuesday"},
		{"increments", 0, "^wait .* volumesnapshot/wednesday ", "cbr/tuesday|wednesday|thursday"},
		{"increments", 0, "^get cbr tuesday ", "apply -f - wednesday|backup-wednesday|thursday"},
		{"increments", 0, "^wait .* job --all ", "^none"},
		{"increments", 1, "^logs job/backup-sunday ", "^none"},
		{"nightly", 0, "^wait .* job/night-2 ", "nightly night-3"},
		{"nightly", 0, "^logs job/night-2$", "nightly night-3"},
		{"parallel-workers", 0, "^get pod ", "^logs"},
		{"parallel-workers", 0, "^logs or$", "^logs"},
	} {
		t.Run(c.page+" "+c.failing, func(t *testing.T) {
			t.Parallel()
			text := loops(t, c.page)[c.block]
			failing := regexp.MustCompile(c.failing)
			calls, status, printed := pasted(t, c.page, text, c.failing, "COMPARE=yes")
			at := slices.IndexFunc(calls, failing.MatchString)
			if at < 0 {
				t.Fatalf("nothing failed:\n%s", printed)
			}
			next := regexp.MustCompile(c.next)
			if i := slices.IndexFunc(calls[at+1:], next.MatchString); i >= 0 {
				t.Errorf("after %q it goes on to %q", calls[at], calls[at+1+i])
			}
			if status == "0" {
				t.Errorf("its status is 0:\n%s", printed)
			}
			if c.page == "restore" && !strings.Contains(printed, "NOT RESTORED") {
				t.Errorf("it does not say that nothing was restored:\n%s", printed)
			}
		})
	}
	for _, page := range []string{"restore", "increments", "nightly", "parallel-workers"} {
		for _, text := range loops(t, page) {
			if calls, status, printed := pasted(t, page, text, "", "COMPARE=yes"); status != "0" || strings.Contains(printed, "NOT") {
				t.Errorf("without a failure, %s ends with %s after %q:\n%s", page, status, calls, printed)
			}
		}
	}
}
