//! A flight as it comes in, the row that is kept of it, and a carrier's totals. Pure: bytes to values and back.

use std::borrow::Cow;
use std::io::Write as _;

use samza::{DecodeError, Serde};
use serde::{Deserialize, Serialize};

/// Minutes after which a departure counts as delayed.
const LATE: i64 = 15;

/// What the job uses of one message of the input; other fields are left alone.
#[derive(Debug, PartialEq, Deserialize)]
pub struct Flight<'a> {
    year: u16,
    month: u8,
    day: u8,
    /// The carrier's two letters.
    #[serde(borrow)]
    pub carrier: Cow<'a, str>,
    flight: u32,
    #[serde(borrow)]
    origin: Cow<'a, str>,
    #[serde(borrow)]
    dest: Cow<'a, str>,
    #[serde(borrow)]
    tailnum: Option<Cow<'a, str>>,
    /// hhmm.
    sched_dep_time: u16,
    /// hhmm; none if it never left.
    dep_time: Option<u16>,
    /// Minutes, below 0 if it left early; none if it never left.
    dep_delay: Option<i64>,
}

impl<'a> Flight<'a> {
    /// Reads a message's value, a JSON object.
    pub fn parse(message: &'a [u8]) -> Result<Flight<'a>, serde_json::Error> {
        serde_json::from_slice(message)
    }

    /// Replaces `out` with the key of its row. No two flights of the year share one: a carrier uses a number more
    /// than once on some days, but then from different airports.
    pub fn write_key(&self, out: &mut Vec<u8>) {
        out.clear();
        let Flight { year, month, day, carrier, flight, origin, .. } = self;
        write!(out, "{year:04}-{month:02}-{day:02} {carrier}{flight} {origin}").expect("a Vec takes all");
    }

    /// Replaces `out` with its row: destination, tail number, hhmm scheduled, hhmm left, minutes late; what is not
    /// known is empty.
    pub fn write_row(&self, out: &mut Vec<u8>) {
        out.clear();
        let tail = self.tailnum.as_deref().unwrap_or("");
        write!(out, "{},{tail},{},", self.dest, self.sched_dep_time).expect("a Vec takes all");
        if let Some(time) = self.dep_time {
            write!(out, "{time}").expect("a Vec takes all");
        }
        out.push(b',');
        if let Some(delay) = self.dep_delay {
            write!(out, "{delay}").expect("a Vec takes all");
        }
    }
}

/// A carrier's totals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Flights.
    pub flights: i64,
    /// Those without a departure time.
    pub cancelled: i64,
    /// Those that left more than 15 minutes late.
    pub delayed: i64,
    /// The sum of departure delays, minutes.
    pub delay_minutes: i64,
}

impl Totals {
    /// Counts `flight`.
    pub fn add(&mut self, flight: &Flight<'_>) {
        self.flights += 1;
        self.cancelled += i64::from(flight.dep_time.is_none());
        self.delayed += i64::from(flight.dep_delay.is_some_and(|minutes| minutes > LATE));
        // Nonsense in one message must not stop the job.
        self.delay_minutes = self.delay_minutes.saturating_add(flight.dep_delay.unwrap_or(0));
    }
}

/// [`Totals`] as four big-endian numbers: they are written with every flight, so they are kept small.
pub struct TotalsSerde;

impl Serde<Totals> for TotalsSerde {
    fn encode(&self, value: &Totals, out: &mut Vec<u8>) {
        for number in [value.flights, value.cancelled, value.delayed, value.delay_minutes] {
            out.extend_from_slice(&number.to_be_bytes());
        }
    }
    fn decode(&self, bytes: &[u8]) -> Result<Totals, DecodeError> {
        let wrong = || DecodeError(format!("{} bytes where 32 were expected", bytes.len()));
        let (numbers, []) = bytes.as_chunks::<8>() else { return Err(wrong()) };
        let [flights, cancelled, delayed, delay_minutes] = *numbers else { return Err(wrong()) };
        Ok(Totals {
            flights: i64::from_be_bytes(flights),
            cancelled: i64::from_be_bytes(cancelled),
            delayed: i64::from_be_bytes(delayed),
            delay_minutes: i64::from_be_bytes(delay_minutes),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LATE_FLIGHT: &str = r#"{"year":2013,"month":1,"day":2,"dep_time":517,"sched_dep_time":500,"dep_delay":17,
        "arr_time":830,"carrier":"UA","flight":1545,"tailnum":"N14228","origin":"EWR","dest":"IAH","air_time":227}"#;
    const CANCELLED: &str = r#"{"year":2013,"month":12,"day":31,"dep_time":null,"sched_dep_time":1630,"dep_delay":null,
        "carrier":"EV","flight":4308,"tailnum":null,"origin":"LGA","dest":"RDU"}"#;

    fn key_and_row(message: &str) -> (String, String) {
        let flight = Flight::parse(message.as_bytes()).expect("a flight");
        let (mut key, mut row) = (b"left over".to_vec(), b"left over".to_vec());
        flight.write_key(&mut key);
        flight.write_row(&mut row);
        (String::from_utf8(key).expect("text"), String::from_utf8(row).expect("text"))
    }

    #[test]
    fn a_flight_becomes_a_key_and_a_row() {
        let expected = ("2013-01-02 UA1545 EWR".to_owned(), "IAH,N14228,500,517,17".to_owned());
        assert_eq!(key_and_row(LATE_FLIGHT), expected);
        assert_eq!(key_and_row(CANCELLED), ("2013-12-31 EV4308 LGA".to_owned(), "RDU,,1630,,".to_owned()));
    }

    #[test]
    fn totals_count_cancelled_and_late_flights_and_add_up_delays() {
        let mut totals = Totals::default();
        for message in [LATE_FLIGHT, CANCELLED] {
            totals.add(&Flight::parse(message.as_bytes()).expect("a flight"));
        }
        assert_eq!(totals, Totals { flights: 2, cancelled: 1, delayed: 1, delay_minutes: 17 });
    }

    #[test]
    fn fifteen_minutes_are_in_time_and_an_early_start_makes_up_for_a_late_one() {
        let mut totals = Totals::default();
        for delay in ["15", "-20"] {
            let message = LATE_FLIGHT.replace("\"dep_delay\":17", &format!("\"dep_delay\":{delay}"));
            totals.add(&Flight::parse(message.as_bytes()).expect("a flight"));
        }
        assert_eq!(totals, Totals { flights: 2, cancelled: 0, delayed: 0, delay_minutes: -5 });
    }

    #[test]
    fn what_is_no_flight_is_refused_by_the_name_of_what_is_missing() {
        let message = LATE_FLIGHT.replace("carrier", "courier");
        let refusal = Flight::parse(message.as_bytes()).expect_err("there is no carrier").to_string();
        assert!(refusal.contains("carrier"), "{refusal}");
    }

    #[test]
    fn totals_survive_their_bytes() {
        let totals = Totals { flights: 1, cancelled: 2, delayed: 3, delay_minutes: -4 };
        let mut bytes = Vec::new();
        TotalsSerde.encode(&totals, &mut bytes);
        assert_eq!(TotalsSerde.decode(&bytes).expect("its own bytes"), totals);
        assert!(TotalsSerde.decode(&bytes[1..]).is_err());
    }
    proptest! {
        #[test]
        fn any_bytes_are_a_flight_or_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..80),
            at in 0..LATE_FLIGHT.len(),
            byte: u8,
        ) {
            let mut damaged = LATE_FLIGHT.as_bytes().to_vec();
            damaged[at] = byte;
            for message in [&bytes, &damaged] {
                if let Ok(flight) = Flight::parse(message) {
                    let mut out = Vec::new();
                    flight.write_key(&mut out);
                    flight.write_row(&mut out);
                    Totals::default().add(&flight);
                }
            }
            prop_assert_eq!(TotalsSerde.decode(&bytes).is_ok(), bytes.len() == 32);
        }

        #[test]
        fn totals_take_any_delays(delays: Vec<i64>) {
            let mut totals = Totals::default();
            for delay in &delays {
                let message = LATE_FLIGHT.replace("\"dep_delay\":17", &format!("\"dep_delay\":{delay}"));
                totals.add(&Flight::parse(message.as_bytes()).expect("a flight"));
            }
            prop_assert_eq!(totals.flights, delays.len() as i64);
        }
    }
}
