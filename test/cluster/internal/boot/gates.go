package boot

import (
	"fmt"
	"strconv"
	"strings"
)

const crossNamespaceGate = "CrossNamespaceVolumeDataSource"

// gates are the feature gates of the Kubernetes components; all of them know
// all gates.
type gates string

// flag returns the components' command line flag.
func (g gates) flag() []string {
	if g == "" {
		return nil
	}
	return []string{"--feature-gates=" + string(g)}
}

// parse returns the gates as the kubelet's configuration spells them.
func (g gates) parse() (map[string]bool, error) {
	parsed := map[string]bool{}
	if g == "" {
		return parsed, nil
	}
	for _, part := range strings.Split(string(g), ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		on, err := strconv.ParseBool(value)
		if !ok || name == "" || err != nil {
			return nil, fmt.Errorf("feature gate %q: write it as NAME=true or NAME=false", part)
		}
		parsed[name] = on
	}
	return parsed, nil
}

// crossNamespace says whether claims may name sources in other namespaces,
// which the provisioner must be told, too.
func (g gates) crossNamespace() bool {
	parsed, err := g.parse()
	return err == nil && parsed[crossNamespaceGate]
}

// CheckGates returns what is wrong with a --feature-gates value.
func CheckGates(value string) error {
	_, err := gates(value).parse()
	return err
}
