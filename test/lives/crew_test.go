package lives

import (
	"sync"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// crew lets many lives take their steps together and restarts the controller between any two.
type crew struct {
	w    *world
	mu   sync.Mutex
	next *sync.Cond
	// members take part, arrived are waiting for the others; round counts the restarts.
	members, arrived, round int
	// running is what the members want the controller to do next.
	running bool
}

func (w *world) newCrew(members int) *crew {
	c := &crew{w: w, members: members}
	c.next = sync.NewCond(&c.mu)
	return c
}

// turn waits for the other members; the last one restarts the controller, which runs afterwards or not.
func (c *crew) turn(running bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running = running
	c.arrived++
	if c.arrived == c.members {
		c.restart()
		return
	}
	for round := c.round; round == c.round; {
		c.next.Wait()
	}
}

// leave takes a member out.
func (c *crew) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members--
	if c.members > 0 && c.arrived == c.members {
		c.restart()
	}
}

// restart stops and starts the controller, in the order that leaves it as it is wanted; the caller holds mu.
func (c *crew) restart() {
	if c.w.stop == nil {
		c.w.startController()
		if !c.running {
			c.w.stop()
		}
	} else {
		c.w.stop()
		if c.running {
			c.w.startController()
		}
	}
	c.arrived = 0
	c.round++
	c.next.Broadcast()
}

// checkNothingLeft checks the populator namespace once all lives have ended.
func (w *world) checkNothingLeft() {
	w.Helper()
	for _, list := range []client.ObjectList{&corev1.PersistentVolumeClaimList{}, &corev1.PodList{}} {
		if err := w.c.List(w.Context(), list, client.InNamespace(w.cfg.PopulatorNamespace)); err != nil {
			w.Fatal(err)
		}
		switch list := list.(type) {
		case *corev1.PersistentVolumeClaimList:
			for i := range list.Items {
				w.Errorf("claim %s is left", list.Items[i].Name)
			}
		case *corev1.PodList:
			for i := range list.Items {
				w.Errorf("pod %s is left", list.Items[i].Name)
			}
		}
	}
}
