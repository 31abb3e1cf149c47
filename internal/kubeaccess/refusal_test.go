package kubeaccess

import (
	"errors"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// invalid is a refusal as the API server sends it.
func invalid(causes ...metav1.StatusCause) error {
	err := apierrors.NewInvalid(schema.GroupKind{Group: "g", Kind: "K"}, "x", nil)
	err.ErrStatus.Details.Causes = causes
	return err
}

func TestRefusalsAreSentences(t *testing.T) {
	for name, test := range map[string]struct {
		causes []metav1.StatusCause
		want   string
	}{
		"without a value": {[]metav1.StatusCause{{Field: "spec", Message: "Invalid value: a and b both name it: set one"}}, "a and b both name it: set one"},
		"with an object":  {[]metav1.StatusCause{{Field: "spec", Message: `Invalid value: {"a":"x: y","b":[1]}: they differ: change one`}}, "they differ: change one"},
		"with a text":     {[]metav1.StatusCause{{Field: "spec.name", Message: `Invalid value: "a: \"b\"": name must be a name`}}, "name must be a name"},
		"with a number":   {[]metav1.StatusCause{{Field: "spec.size", Message: "Invalid value: 3: must be even"}}, "spec.size: must be even"},
		"of another kind": {[]metav1.StatusCause{{Field: "spec.format", Message: `Unsupported value: "X": supported values: "Y"`}}, `spec.format: Unsupported value: "X": supported values: "Y"`},
		"several, one twice, and lines": {[]metav1.StatusCause{
			{Field: "spec", Message: "Invalid value: first\n  line"}, {Field: "spec", Message: "Invalid value: first\n  line"}, {Field: "<nil>", Message: "second"},
		}, "first line; second"},
	} {
		t.Run(name, func(t *testing.T) {
			err := Explain("create x", invalid(test.causes...))
			if want := "create x: refused: " + test.want; err.Error() != want {
				t.Errorf("got  %q\nwant %q", err, want)
			}
			if !apierrors.IsInvalid(err) {
				t.Error("the cause is lost")
			}
		})
	}
	if err := Explain("x", nil); err != nil {
		t.Errorf("nil became %v", err)
	}
	if err := Explain("do x", errors.New("boom")); err.Error() != "do x: boom" {
		t.Errorf("got %v", err)
	}
}
