package advice

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cbt-populator/cbt-populator/internal/outcome"
)

var (
	// table is one that begins with the column "reason".
	table = regexp.MustCompile(`(?m)^\| reason \|.*\n\|-.*\n((?:\|.*\n)+)`)
	// constant is a reason of api/v1alpha1.
	constant = regexp.MustCompile(`(?m)^\s*Reason\w+\s*= "(\w+)"`)
)

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestTheDocumentationSaysTheSame compares the tables with those of the page, row by row.
func TestTheDocumentationSaysTheSame(t *testing.T) {
	page := read(t, "../../docs/changedblockrange.md")
	_, page, found := strings.Cut(page, "\n## Reasons, and what to do\n")
	if !found {
		t.Fatal("docs/changedblockrange.md has no section of reasons")
	}
	var got [][]Advice
	for _, match := range table.FindAllStringSubmatch(page, -1) {
		var rows []Advice
		for _, line := range strings.Split(strings.TrimSpace(match[1]), "\n") {
			cells := strings.Split(strings.TrimSuffix(strings.TrimPrefix(line, "|"), "|"), "|")
			row := Advice{Reason: strings.Trim(strings.TrimSpace(cells[0]), "`"), Meaning: strings.TrimSpace(cells[1])}
			if len(cells) > 2 {
				row.Do = strings.TrimSpace(cells[2])
			}
			rows = append(rows, row)
		}
		got = append(got, rows)
	}
	if diff := cmp.Diff([][]Advice{resolving, populating, terminal, retried}, got); diff != "" {
		t.Errorf("docs/changedblockrange.md differs (-advice +page):\n%s", diff)
	}
}

// TestEveryReasonHasAdvice: of the API and of the populator.
func TestEveryReasonHasAdvice(t *testing.T) {
	matches := constant.FindAllStringSubmatch(read(t, "../../api/v1alpha1/conditions.go"), -1)
	if len(matches) < 25 {
		t.Fatalf("only %d reasons were found", len(matches))
	}
	var reasons []string
	for _, m := range matches {
		reasons = append(reasons, m[1])
	}
	for _, r := range outcome.Reasons() {
		reasons = append(reasons, string(r))
	}
	for _, reason := range reasons {
		if reason == "UsedAllocated" {
			continue // a reason of events only
		}
		if a, ok := For(reason, false); !ok || a.Meaning == "" {
			t.Errorf("%s has no advice", reason)
		}
	}
}

func TestFor(t *testing.T) {
	for _, test := range []struct {
		reason   string
		resolved bool
		do       string
	}{
		{"SnapshotNotFound", false, "create it, or name another one"},
		{"SnapshotNotFound", true, "check it in the storage system"},
		{"VolumeMismatch", false, "name two snapshots of one volume"},
		{"VolumeFull", true, "a new, larger claim"},
		{"InvalidArguments", true, "`format: Binary`"},
	} {
		if a, ok := For(test.reason, test.resolved); !ok || !strings.Contains(a.Do, test.do) {
			t.Errorf("%s, resolved %t: %+v", test.reason, test.resolved, a)
		}
	}
	if a, ok := For("Nonsense", true); ok {
		t.Errorf("got %+v", a)
	}
	if got := Plain("a `b` c"); got != "a b c" {
		t.Errorf("got %q", got)
	}
}
