package controller

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/cbt-populator/cbt-populator/api/v1alpha1"
)

func TestCountPopulated(t *testing.T) {
	claim := func(change ...func(*corev1.PersistentVolumeClaim)) []corev1.PersistentVolumeClaim {
		return []corev1.PersistentVolumeClaim{aClaim("a", change...)}
	}
	copied := func(c *corev1.PersistentVolumeClaim) {
		metav1.SetMetaDataAnnotation(&c.ObjectMeta, v1alpha1.AnnotationOtherVolume, "another")
	}
	written := []corev1.Pod{aPod("a", ended(t, late, threeBlocks()))}
	for name, test := range map[string]struct {
		seen observation
		want int32
	}{
		"a claim that waits":                                 {observation{claims: claim()}, 0},
		"a claim that waits, with a copied annotation":       {observation{claims: claim(copied)}, 0},
		"a claim whose volume is filled":                     {observation{claims: claim(isStarted), pods: written}, 1},
		"a claim that is bound":                              {observation{claims: claim(isBound)}, 1},
		"a claim that is bound, with a copied annotation":    {observation{claims: claim(isBound, copied)}, 1},
		"a claim with another volume":                        {observation{claims: claim(isAstray)}, 0},
		"a claim that got another volume, beside the filled": {observation{claims: claim(isStarted, isAstray), pods: written}, 0},
		"a claim that gets another volume, beside the filled": {
			observation{claims: claim(isStarted, isBound), pods: written, taken: map[types.UID]bool{"uid-a": true}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			if got := countPopulated(&test.seen, attempts(test.seen.pods, nil)); got != test.want {
				t.Errorf("%d claims are populated, want %d", got, test.want)
			}
		})
	}
}
