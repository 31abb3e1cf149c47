package kubeaccess

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

// Explain returns err with what the API server's answer means to a person, on one line. doing says what was tried, such as
// "create ChangedBlockRange a/b". It returns nil for nil.
func Explain(doing string, err error) error {
	var missing *meta.NoKindMatchError
	var missingGroup *meta.NoResourceMatchError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &missing), errors.As(err, &missingGroup):
		return fmt.Errorf("%s: %w: %s", doing, err, whoInstalls(err))
	case apierrors.IsInvalid(err):
		return &refusal{text: fmt.Sprintf("%s: refused: %s", doing, sentences(err)), cause: err}
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%s: %w: ask the cluster's administrator for the permission (see Permissions in docs/kubectl-cbr.md)", doing, err)
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("%s: %w: the API server does not accept your credentials: log in again, or use another --context", doing, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// refusal is an error whose text replaces that of its cause.
type refusal struct {
	text  string
	cause error
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.cause }

func whoInstalls(err error) string {
	switch text := err.Error(); {
	case strings.Contains(text, v1alpha1.Kind), strings.Contains(text, v1alpha1.Resource):
		return "cbt-populator is not installed in this cluster, see its README"
	case strings.Contains(text, "SnapshotMetadataService"):
		return "no CSI driver with a snapshot metadata service is installed in this cluster"
	}
	return "it is not installed in this cluster"
}

// sentences joins the causes of a refusal, without the values that were refused: those may be whole objects, and whoever
// typed them knows them.
func sentences(err error) string {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Details == nil || len(status.Status().Details.Causes) == 0 {
		return err.Error()
	}
	var parts []string
	seen := map[string]bool{}
	for _, cause := range status.Status().Details.Causes {
		text := sentence(cause)
		if !seen[text] {
			seen[text] = true
			parts = append(parts, text)
		}
	}
	return strings.Join(parts, "; ")
}

// sentence returns what a cause says. Our own rules speak in whole sentences that name their field, so the field is
// repeated only for other causes.
func sentence(cause metav1.StatusCause) string {
	text := strings.Join(strings.Fields(withoutValue(cause.Message)), " ")
	field := cause.Field[strings.LastIndex(cause.Field, ".")+1:]
	if field == "" || field == "<nil>" || field == "spec" || strings.Contains(text, field) {
		return text
	}
	return cause.Field + ": " + text
}

// withoutValue cuts the value out of a message of the form `Invalid value: VALUE: text`, where VALUE is JSON and may be left out.
func withoutValue(message string) string {
	rest, ok := strings.CutPrefix(message, "Invalid value: ")
	if !ok {
		return message
	}
	dec := json.NewDecoder(strings.NewReader(rest))
	var value any
	if err := dec.Decode(&value); err == nil {
		if text, ok := strings.CutPrefix(rest[dec.InputOffset():], ": "); ok {
			return text
		}
	}
	return rest
}
