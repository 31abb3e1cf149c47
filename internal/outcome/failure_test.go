package outcome

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestFailureIsReadBack(t *testing.T) {
	want := Failure{
		SourceUID: "uid", Source: "a", Setting: "b", Reason: ListTooLarge, Message: "the list would be \"too\" large",
		Attempt: 3, At: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
	}
	annotation, err := want.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, ok := ParseFailure(annotation)
	if diff := cmp.Diff(want, got); !ok || diff != "" {
		t.Errorf("ok %v, %s", ok, diff)
	}
	for _, foreign := range []string{"", "{}", "null", "[]", "{", `{"attempt":0}`, `{"attempt":"1"}`} {
		if f, ok := ParseFailure(foreign); ok {
			t.Errorf("%q was taken for the failure %+v", foreign, f)
		}
	}
}
