package cluster

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// writes counts what service accounts wrote to the API server: requests by verb and resource, such as "patch pods".
type writes map[string]int

// total returns the number of requests.
func (w writes) total() (n int) {
	for _, count := range w {
		n += count
	}
	return n
}

// perClaim lists the requests, the most frequent first, as a number for each of so many claims.
func (w writes) perClaim(claims int) string {
	what := make([]string, 0, len(w))
	for k := range w {
		what = append(what, k)
	}
	slices.SortFunc(what, func(a, b string) int {
		if w[a] != w[b] {
			return w[b] - w[a]
		}
		return strings.Compare(a, b)
	})
	for i, k := range what {
		what[i] = fmt.Sprintf("%.2f %s", float64(w[k])/float64(claims), k)
	}
	return strings.Join(what, ", ")
}

// window is a span of time in which one account's writes are counted.
type window struct {
	account    string
	begin, end time.Time
}

// auditEvent is what is needed of a line of the API server's audit log.
type auditEvent struct {
	Verb string `json:"verb"`
	User struct {
		Username string `json:"username"`
	} `json:"user"`
	ObjectRef struct {
		Resource    string `json:"resource"`
		Subresource string `json:"subresource"`
	} `json:"objectRef"`
	Stage    string    `json:"stage"`
	Received time.Time `json:"requestReceivedTimestamp"`
}

// readAudit counts the writes in each window in the API server's audit log at path.
func readAudit(path string, windows []window) (counts []writes, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the API server's audit log: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return countWrites(f, windows)
}

func countWrites(r io.Reader, windows []window) ([]writes, error) {
	counts := make([]writes, len(windows))
	for i := range counts {
		counts[i] = writes{}
	}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e auditEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("read the API server's audit log: %w", err)
		}
		if !e.isWrite() {
			continue
		}
		for i, w := range windows {
			if e.User.Username == w.account && e.Received.After(w.begin) && e.Received.Before(w.end) {
				counts[i][e.name()]++
			}
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read the API server's audit log: %w", err)
	}
	return counts, nil
}

// isWrite leaves out leases: they are renewed whether there are claims or not.
func (e auditEvent) isWrite() bool {
	return e.Stage == "ResponseComplete" && e.ObjectRef.Resource != "leases" &&
		slices.Contains([]string{"create", "update", "patch", "delete", "deletecollection"}, e.Verb)
}

func (e auditEvent) name() string {
	if e.ObjectRef.Subresource != "" {
		return e.Verb + " " + e.ObjectRef.Resource + "/" + e.ObjectRef.Subresource
	}
	return e.Verb + " " + e.ObjectRef.Resource
}
