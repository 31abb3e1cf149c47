//go:build e2e

package e2e

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// controllerUser is whom the API server's audit log knows the controller as.
const controllerUser = "system:serviceaccount:" + populatorNS + ":cbt-populator-controller"

// right is one verb on one resource that a role grants, in one namespace or in all of them.
type right struct{ role, group, resource, verb string }

func (r right) String() string {
	return fmt.Sprintf("%s: %s %s", r.role, r.verb, strings.TrimPrefix(r.group+"/"+r.resource, "/"))
}

// request is what the audit log says of one.
type request struct {
	Verb string
	User struct{ Username string }
	// ObjectRef is nil for requests that concern no object, such as discovery.
	ObjectRef *struct {
		Resource, Namespace, Name, APIGroup, Subresource string
	}
	ResponseStatus struct{ Code int }
	Annotations    map[string]string
	RequestURI     string
	// Received is when the request came in.
	Received time.Time `json:"requestReceivedTimestamp"`
}

// installing is the time in which a test installs and removes the controller. One that is being removed loses its rights
// before it ends.
var installing struct{ from, to time.Time }

// rightsAreMinimal compares the rights that the controller has with those that it used since the cluster was started,
// according to the API server: none was refused, and none was superfluous. Only a run of all tests uses them all.
func rightsAreMinimal(ctx context.Context) error {
	granted, err := grantedRights(ctx)
	if err != nil {
		return err
	}
	dir := cmp.Or(os.Getenv("CBT_CLUSTER_DIR"), "/var/lib/cbt-cluster")
	log, err := os.Open(filepath.Join(dir, "logs", "audit.log"))
	if err != nil {
		return fmt.Errorf("open the audit log of the local cluster: %w", err)
	}
	defer func() { _ = log.Close() }() // it was read only
	used, refused := sets.New[right](), sets.New[string]()
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 1<<20)
	requests := 0
	for lines.Scan() {
		var r request
		if json.Unmarshal(lines.Bytes(), &r) != nil || r.User.Username != controllerUser || r.ObjectRef == nil {
			continue
		}
		requests++
		meanwhile := r.Received.After(installing.from) && r.Received.Before(installing.to)
		if r.Annotations["authorization.k8s.io/decision"] == "forbid" && !meanwhile {
			refused.Insert(r.Verb + " " + r.RequestURI)
		}
		used = used.Union(r.uses())
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read the audit log: %w", err)
	}
	if requests == 0 {
		return errors.New("the audit log has no request of the controller")
	}
	var errs []error
	if refused.Len() > 0 {
		errs = append(errs, fmt.Errorf("the controller was refused: %s", strings.Join(sets.List(refused), ", ")))
	}
	if flag.Lookup("test.run").Value.String() == "" {
		for _, r := range granted {
			if !used.Has(r) && !rarelyUsed(r, used) {
				errs = append(errs, fmt.Errorf("a right that nothing used: %s", r))
			}
		}
	}
	return errors.Join(errs...)
}

// rarelyUsed reports whether a right is needed although not every run needs it.
func rarelyUsed(r right, used sets.Set[right]) bool {
	switch {
	case r.verb == "list":
		// A client lists before it watches where the API server does not stream lists yet.
		return used.Has(right{r.role, r.group, r.resource, "watch"})
	case r.verb == "patch" && r.resource == "events":
		// An event that is repeated.
		return used.Has(right{r.role, r.group, r.resource, "create"})
	case r == right{"ClusterRole", "", "persistentvolumeclaims", "get"}:
		// A claim that the cache does not know is looked up before its temporary objects go.
		return true
	}
	return false
}

// uses returns the rights that may have permitted a request: of the role in the populator namespace, and of the cluster role.
func (r request) uses() sets.Set[right] {
	resource := r.ObjectRef.Resource
	if r.ObjectRef.Subresource != "" {
		resource += "/" + r.ObjectRef.Subresource
	}
	used := sets.New(right{"ClusterRole", r.ObjectRef.APIGroup, resource, r.Verb})
	if r.ObjectRef.Namespace == populatorNS {
		used.Insert(right{"Role", r.ObjectRef.APIGroup, resource, r.Verb})
	}
	return used
}

func grantedRights(ctx context.Context) ([]right, error) {
	var all rbacv1.ClusterRole
	var own rbacv1.Role
	name := client.ObjectKey{Namespace: populatorNS, Name: "cbt-populator-controller"}
	if err := errors.Join(api.Get(ctx, client.ObjectKey{Name: name.Name}, &all), api.Get(ctx, name, &own)); err != nil {
		return nil, fmt.Errorf("get the controller's roles: %w", err)
	}
	var granted []right
	for role, rules := range map[string][]rbacv1.PolicyRule{"ClusterRole": all.Rules, "Role": own.Rules} {
		for _, rule := range rules {
			for _, group := range rule.APIGroups {
				for _, resource := range rule.Resources {
					for _, verb := range rule.Verbs {
						granted = append(granted, right{role, group, resource, verb})
					}
				}
			}
		}
	}
	slices.SortFunc(granted, func(a, b right) int { return cmp.Compare(a.String(), b.String()) })
	return granted, nil
}
