//! Distributions: against an exact sort, and only of what is exact.

use proptest::prelude::*;
use tcpstate_common::{
    record::RecordKind,
    state::TcpState::{
        self, Close, CloseWait, Closing, Established, FinWait1, FinWait2, LastAck, SynSent,
        TimeWait,
    },
};
use tcpstate_user::analysis::{
    By, Cell, Dimension, Hist, HistOptions, Histogram, Measure, Order, Report, Row, RowKind, Scale,
};

use crate::{
    records::{MS, owned, record, timer},
    reports::{Run, by, count, hist, value},
    scene::{START, Sent, life, scene},
};

/// Rows of one measure.
fn rows(report: &Report, measure: Measure) -> Vec<&Row> {
    let state = Cell::Term {
        label: measure.label(),
        name: measure.name(),
    };
    let rows = report.table.rows.iter();
    rows.filter(|row| *value(report, row, "state") == state)
        .collect()
}

/// Its samples and its maximum in microseconds, and how many are not exact.
fn told(report: &Report, measure: Measure) -> (u64, Option<u64>, u64) {
    let rows = rows(report, measure);
    let Some(row) = rows.first() else {
        return (0, None, 0);
    };
    assert_eq!(rows.len(), 1);
    let max = match value(report, row, "max") {
        Cell::Duration(nanoseconds) => Some(nanoseconds / 1000),
        _ => None,
    };
    (
        count(report, row, "count"),
        max,
        count(report, row, "not_exact"),
    )
}

fn measured(all: &[Sent]) -> Report {
    Run::new(hist(By::nothing(), Scale::Logarithmic), None).report(all)
}

#[test]
fn each_state_and_the_close_as_a_whole() {
    let passive = life(
        5,
        10,
        &[
            (Close, 0),
            (SynSent, 0),
            (Established, 150),
            (CloseWait, 3_000),
            (LastAck, 250_000),
            (Close, 40),
        ],
        |record| record,
    );
    let report = measured(&passive);
    assert_eq!(told(&report, Measure::SynSent), (1, Some(150), 0));
    assert_eq!(told(&report, Measure::Established), (1, Some(3_000), 0));
    assert_eq!(told(&report, Measure::CloseWait), (1, Some(250_000), 0));
    assert_eq!(told(&report, Measure::LastAck), (1, Some(40), 0));
    assert_eq!(told(&report, Measure::PassiveClose), (1, Some(250_040), 0));
    assert_eq!(report.table.rows.len(), 5);

    let crossed = life(
        6,
        10,
        &[
            (Established, 0),
            (FinWait1, 10),
            (Closing, 200),
            (Close, 300),
        ],
        |record| record,
    );
    let report = measured(&crossed);
    assert_eq!(told(&report, Measure::FinWait1), (1, Some(200), 0));
    assert_eq!(told(&report, Measure::Closing), (1, Some(300), 0));
    assert_eq!(told(&report, Measure::ActiveClose), (1, Some(500), 0));
    // It was open before we looked: at least.
    assert_eq!(told(&report, Measure::Established), (0, None, 1));
    assert_eq!(
        report.table.notes,
        ["1 not exact, left out: begun before we looked, or events lost"]
    );

    let failed = life(7, 10, &[(Close, 0), (SynSent, 0), (Close, 70)], |record| {
        record
    });
    let report = measured(&failed);
    assert_eq!(told(&report, Measure::ConnectFailed), (1, Some(70), 0));
    assert_eq!(told(&report, Measure::SynSent), (0, None, 0));
    assert_eq!(report.table.rows.len(), 1);
}

/// An active close with a minisocket in FIN_WAIT2 for 30 ms, and 60 s of TIME_WAIT.
fn minisocket() -> Vec<Sent> {
    let steps = [
        (Close, 0),
        (SynSent, 0),
        (Established, 100),
        (FinWait1, 1_000),
        (FinWait2, 100),
    ];
    let mut all = life(5, 10, &steps, |record| record);
    let born = START + 12 * MS;
    let timers = [
        (RecordKind::TimeWaitArmed, born, FinWait2),
        (RecordKind::TimeWaitArmed, born + 30 * MS, TimeWait),
        (RecordKind::TimeWaitArmed, born + 5_000 * MS, TimeWait),
        (RecordKind::TimeWaitExpired, born + 65_030 * MS, TimeWait),
    ];
    for (kind, time, substate) in timers {
        let left = if kind == RecordKind::TimeWaitArmed {
            60_000 * MS
        } else {
            0
        };
        all.push(Sent::Timer(timer(kind, 5, time, substate, left)));
        if time == born {
            all.push(Sent::Transition(record(5, time + 10_000, FinWait2, Close)));
        }
    }
    all
}

#[test]
fn minisockets_are_measured_to_their_end() {
    let report = measured(&minisocket());
    // From 11.2 ms of the life to 42: in the full socket and in the minisocket.
    assert_eq!(told(&report, Measure::FinWait2), (1, Some(30_800), 0));
    assert_eq!(told(&report, Measure::TimeWait), (1, Some(65_000_000), 0));
    assert_eq!(told(&report, Measure::ActiveClose), (1, Some(30_900), 0));
    assert!(report.table.notes.is_empty(), "{:?}", report.table.notes);

    // As long as the peer's FIN is not heard of, nothing has ended.
    let waiting = measured(&minisocket()[..6]);
    assert_eq!(told(&waiting, Measure::FinWait2), (0, None, 0));
    assert_eq!(told(&waiting, Measure::ActiveClose), (0, None, 0));
    assert_eq!(
        waiting.table.notes,
        ["1 minisocket in FIN_WAIT2, or in TIME_WAIT unheard: measured at the end"]
    );
}

#[test]
fn without_minisockets_the_end_of_fin_wait2_is_a_bound() {
    let options = |states: &[TcpState]| HistOptions {
        by: By::nothing(),
        order: Order {
            column: "count",
            top: 10,
        },
        states: states.to_vec(),
        scale: Scale::Logarithmic,
        buckets: false,
        timewait: false,
        limit: 100,
    };
    let steps = [
        (Close, 0),
        (SynSent, 0),
        (Established, 100),
        (FinWait1, 1_000),
        (FinWait2, 100),
        (Close, 50),
    ];
    let all = life(5, 10, &steps, |record| record);
    let report = Run::new(Hist::new(options(&[])), None).report(&all);
    assert_eq!(told(&report, Measure::FinWait1), (1, Some(100), 0));
    assert_eq!(told(&report, Measure::FinWait2), (0, None, 1));
    assert_eq!(told(&report, Measure::ActiveClose), (0, None, 1));
    // Only what is asked for.
    let report = Run::new(Hist::new(options(&[FinWait1])), None).report(&all);
    assert_eq!(report.table.rows.len(), 1);
    let report = Run::new(Hist::new(options(&[Close, TimeWait])), None).report(&all);
    assert_eq!(report.table.rows.len(), 1);
    assert_eq!(told(&report, Measure::ActiveClose), (0, None, 1));
}

#[test]
fn what_loss_has_touched_is_not_exact() {
    let mut run = Run::new(hist(By::nothing(), Scale::Logarithmic), None);
    let opened = [
        (Close, 0),
        (SynSent, 0),
        (Established, 100),
        (CloseWait, 500),
    ];
    for sent in life(5, 10, &opened, |record| record) {
        run.takes(&sent);
    }
    run.lifecycle.events_lost(START + 15 * MS);
    for sent in life(
        5,
        20,
        &[(CloseWait, 0), (LastAck, 100), (Close, 40)],
        |record| record,
    ) {
        run.takes(&sent);
    }
    let reports = run.ends(START + 40 * MS);
    assert_eq!(told(&reports[0], Measure::Established), (1, Some(500), 0));
    assert_eq!(told(&reports[0], Measure::CloseWait), (0, None, 1));
    assert_eq!(told(&reports[0], Measure::LastAck), (1, Some(40), 0));
    assert_eq!(told(&reports[0], Measure::PassiveClose), (0, None, 1));
}

#[test]
fn groups_of_each_state_add_up() {
    let mut all = scene();
    for pid in 0..20 {
        all.extend(life(
            200 + u64::from(pid),
            900,
            &[(Close, 0), (SynSent, 0), (Close, 70 + u64::from(pid))],
            |record| owned(record, pid + 1, b"many"),
        ));
    }
    let whole = measured(&all);
    for dimensions in [
        &[Dimension::Process][..],
        &[Dimension::Pid],
        &[Dimension::Service, Dimension::Container],
        &Hist::DIMENSIONS,
    ] {
        let report = Run::new(hist(by(dimensions), Scale::Logarithmic), None).report(&all);
        for measure in Measure::ALL {
            let rows = rows(&report, measure);
            let Some((sum, rows)) = rows.split_last() else {
                assert_eq!(told(&whole, measure), (0, None, 0));
                continue;
            };
            assert_eq!(sum.kind, RowKind::Total);
            for column in ["count", "not_exact"] {
                let of_rows: u64 = rows.iter().map(|row| count(&report, row, column)).sum();
                assert_eq!(of_rows, count(&report, sum, column), "{measure:?}");
            }
            let (samples, _, not_exact) = told(&whole, measure);
            assert_eq!(count(&report, sum, "count"), samples);
            assert_eq!(count(&report, sum, "not_exact"), not_exact);
            for column in ["p50", "p99", "max", "buckets"] {
                let expected = value(&whole, self::rows(&whole, measure)[0], column);
                assert_eq!(
                    value(&report, sum, column),
                    expected,
                    "{measure:?} {column}"
                );
            }
        }
    }
}

/// Durations of every size.
fn durations() -> impl Strategy<Value = Vec<u64>> {
    let any_size = (0_u32..45, any::<u64>()).prop_map(|(bits, noise)| (noise >> 19) >> (45 - bits));
    prop_oneof![
        prop::collection::vec(any_size, 1..300),
        prop::collection::vec(60_000_000_000_u64..64_000_000_000, 1..300),
        prop::collection::vec(Just(41_000_u64), 1..50),
    ]
}

proptest! {
    #[test]
    fn quantiles_are_those_of_an_exact_sort_but_for_one_percent(samples in durations(), split in any::<prop::sample::Index>()) {
        let (left, right) = samples.split_at(split.index(samples.len()));
        let mut histogram = Histogram::default();
        for sample in left {
histogram.record(*sample);
}
        let mut other = Histogram::default();
        for sample in right {
other.record(*sample);
}
        histogram.add(&other);

        let mut sorted = samples.clone();
        sorted.sort_unstable();
        prop_assert_eq!(histogram.count(), samples.len() as u64);
        prop_assert_eq!(Some(&histogram.max()), sorted.last());
        for (share, thousandths) in [(0.5, 500), (0.9, 900), (0.99, 990), (0.999, 999)] {
            let rank = (samples.len() * thousandths).div_ceil(1000).max(1);
            let exact = sorted[rank - 1];
            let told = histogram.quantile(share);
            prop_assert!(told >= exact && told - exact <= exact / 100, "{}: {} for {}", share, told, exact);
        }
        for scale in [Scale::Logarithmic, Scale::Linear] {
            let buckets = histogram.buckets(scale);
            prop_assert_eq!(buckets.iter().map(|bucket| bucket.count).sum::<u64>(), samples.len() as u64);
            prop_assert!(scale == Scale::Logarithmic || buckets.len() <= 21, "{}", buckets.len());
            prop_assert!(buckets.first().is_some_and(|bucket| bucket.count > 0));
            prop_assert!(buckets.last().is_some_and(|bucket| bucket.count > 0));
            for pair in buckets.windows(2) {
                prop_assert_eq!(pair[0].to, pair[1].from);
            }
            let mut below = 0;
            for bucket in &buckets {
                below += bucket.count;
                let margin = bucket.to / 100;
                let least = sorted.partition_point(|sample| *sample < bucket.to - margin) as u64;
                let most = sorted.partition_point(|sample| *sample < bucket.to + margin) as u64;
                prop_assert!((least..=most).contains(&below), "{:?}: {} {} {}", bucket, least, below, most);
            }
        }
    }
}

#[test]
fn the_largest_durations_are_no_trouble() {
    let mut histogram = Histogram::default();
    for sample in [0, 1, u64::MAX / 2, u64::MAX] {
        histogram.record(sample);
    }
    assert_eq!(histogram.count(), 4);
    assert_eq!(histogram.max(), u64::MAX);
    for scale in [Scale::Logarithmic, Scale::Linear] {
        let buckets = histogram.buckets(scale);
        assert_eq!(buckets.iter().map(|bucket| bucket.count).sum::<u64>(), 4);
    }
    assert_eq!(Histogram::default().quantile(0.99), 0);
    assert!(Histogram::default().buckets(Scale::Linear).is_empty());
}
