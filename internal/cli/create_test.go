package cli

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
	"github.com/cbt-populator/cbt-populator/internal/kubeaccess"
)

// fullDisk is a file that nothing can be written to.
type fullDisk struct{}

var errFull = errors.New("no space left on device")

func (fullDisk) Write([]byte) (int, error) { return 0, errFull }

// TestCreateUnheard: the claim is made whether or not somebody hears of the ChangedBlockRange. What is said at the end is that nobody
// did, unless something worse has happened.
func TestCreateUnheard(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	errRefused := errors.New("the quota is used up")
	for name, c := range map[string]struct {
		out     io.Writer
		refused bool // the claim is, after the check of it
		want    error
		code    int
	}{
		"the disk is full":                               {out: fullDisk{}, want: errFull, code: exitFailed},
		"the reader went away":                           {out: closedPipe{}, want: errReaderGone, code: exitPipe},
		"the reader went away, and the claim is refused": {out: closedPipe{}, refused: true, want: errRefused, code: exitFailed},
	} {
		t.Run(name, func(t *testing.T) {
			cluster := fake.NewClientBuilder().WithScheme(scheme).WithInterceptorFuncs(interceptor.Funcs{
				Create: func(ctx context.Context, w client.WithWatch, o client.Object, options ...client.CreateOption) error {
					if _, claim := o.(*corev1.PersistentVolumeClaim); claim && c.refused && len(options) == 0 {
						return errRefused
					}
					return w.Create(ctx, o, options...)
				},
			}).Build()
			meta := metav1.ObjectMeta{Namespace: "shop", Name: "tuesday"}
			m := &maker{
				s: Streams{Out: standardOutput{c.out}, Err: io.Discard}, o: &createOptions{dryRun: dryRunNone},
				access: &kubeaccess.Access{WithWatch: cluster, Namespace: meta.Namespace},
				cbr:    &v1alpha1.ChangedBlockRange{ObjectMeta: meta}, claim: &corev1.PersistentVolumeClaim{ObjectMeta: meta},
			}
			err := m.make(t.Context())
			if code := exitCode(t.Context(), markFailure(err)); !errors.Is(err, c.want) || code != c.code {
				t.Errorf("error %v with exit code %d, want %v with %d", err, code, c.want, c.code)
			}
			says := "ChangedBlockRange tuesday and claim tuesday stay"
			if c.refused {
				says = "ChangedBlockRange tuesday was created and stays"
			}
			if err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("error %v, want it to say that %s", err, says)
			}
			for _, o := range m.objects() {
				_, claim := o.(*corev1.PersistentVolumeClaim)
				if err := cluster.Get(t.Context(), client.ObjectKeyFromObject(o), o); (err == nil) == (claim && c.refused) {
					t.Errorf("%T: %v", o, err)
				}
			}
		})
	}
}
