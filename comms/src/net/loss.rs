//! Congestion control: CUBIC (RFC 9438, quinn's own) that does not take noise for congestion.
//!
//! CUBIC cuts its window by 30 % at each loss, whatever the cause; at 100 ms and one packet lost in a thousand that
//! leaves 5 Mbit/s of any path. Here a loss is passed on to CUBIC only if it looks like a full queue:
//!
//! q = rtt − min rtt                        the queue's delay
//! r = lost / (lost + acknowledged)         over the last 64 to 128 packets and two round trips
//! congestion  ⇔  q > min rtt / 8 + 5 ms  or  r > 2 %  or the path is silent (persistent congestion)
//!
//! so random loss up to 2 % is repaired and otherwise ignored, and a drop-tail queue, which shows in the delay before
//! it overflows, is still answered. Where queues are so shallow that they hold less than an eighth of a round trip,
//! this takes up to 2 % of loss before it yields: more than plain CUBIC, and bounded. The idea of telling the two
//! kinds of loss apart by the backlog is TCP Veno's (Fu & Liew 2003).

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerFactory, ControllerMetrics, Cubic, CubicConfig};

const NOISE_MAX: f64 = 0.02;
const SLACK: Duration = Duration::from_millis(5);
/// Bytes of 64 packets: a share of fewer says nothing.
const SAMPLE_BYTES: u64 = 64 * 1400;

/// Makes controllers.
#[derive(Debug, Clone)]
pub struct TolerantConfig(Arc<CubicConfig>);

impl Default for TolerantConfig {
    /// Starts with 32 packets in flight, as large servers of the web do, where RFC 9002 has 10.
    fn default() -> TolerantConfig {
        let mut cubic = CubicConfig::default();
        cubic.initial_window(32 * 1200);
        TolerantConfig(Arc::new(cubic))
    }
}

impl ControllerFactory for TolerantConfig {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(Tolerant {
            inner: Box::new(Cubic::new(self.0.clone(), now, mtu)),
            queue: Duration::ZERO,
            limit: SLACK,
            rtt: Duration::from_millis(100),
            now: Counts::default(),
            before: Counts::default(),
            turned: now,
        })
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    acked: u64,
    lost: u64,
}

/// The controller of one path.
pub struct Tolerant {
    inner: Box<dyn Controller>,
    queue: Duration,
    limit: Duration,
    rtt: Duration,
    now: Counts,
    before: Counts,
    turned: Instant,
}

impl Tolerant {
    fn count(&mut self, now: Instant, acked: u64, lost: u64) {
        let seen = self.now.acked + self.now.lost;
        if seen >= SAMPLE_BYTES && now.saturating_duration_since(self.turned) >= self.rtt {
            self.before = std::mem::take(&mut self.now);
            self.turned = now;
        }
        self.now.acked += acked;
        self.now.lost += lost;
    }

    fn is_noise(&self) -> bool {
        let lost = self.now.lost + self.before.lost;
        let seen = lost + self.now.acked + self.before.acked;
        // Of few packets one lost is a large share; a single packet's loss is then let pass.
        let share = lost as f64 / seen.max(SAMPLE_BYTES) as f64;
        self.queue <= self.limit && share <= NOISE_MAX
    }
}

impl Controller for Tolerant {
    fn on_sent(&mut self, now: Instant, bytes: u64, last: u64) {
        self.inner.on_sent(now, bytes, last);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.rtt = rtt.get();
        self.queue = self.rtt.saturating_sub(rtt.min());
        self.limit = rtt.min() / 8 + SLACK;
        self.count(now, bytes, 0);
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost: u64) {
        self.count(now, 0, lost);
        // A mark by the network (no bytes lost) is never noise.
        if persistent || lost == 0 || !self.is_noise() {
            self.inner.on_congestion_event(now, sent, persistent, lost);
        }
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.inner.on_mtu_update(mtu);
    }

    fn window(&self) -> u64 {
        self.inner.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Tolerant { inner: self.inner.clone_box(), ..*self })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(now: Instant) -> Box<dyn Controller> {
        Arc::new(TolerantConfig::default()).build(now, 1400)
    }

    #[test]
    fn one_packet_is_noise_a_tenth_is_not() {
        let now = Instant::now();
        let mut c = fresh(now);
        let window = c.window();
        c.on_congestion_event(now, now, false, 1400);
        assert_eq!(c.window(), window);
        c.on_congestion_event(now, now, false, 14_000);
        assert!(c.window() < window);
    }

    #[test]
    fn marks_and_silence_are_always_heard() {
        let now = Instant::now();
        let mut c = fresh(now);
        let window = c.window();
        c.on_congestion_event(now, now, false, 0);
        assert!(c.window() < window);
        let mut c = fresh(now);
        c.on_congestion_event(now, now, true, 1400);
        assert_eq!(c.window(), 2 * 1400);
    }
}
