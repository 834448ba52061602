//! A headless Chromium, driven over WebDriver.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::http;

/// One browser with one page; closed when dropped.
pub struct Browser {
    driver: Child,
    address: String,
    session: String,
}

impl Browser {
    /// Starts a browser whose window is `width` × `height`.
    ///
    /// # Errors
    /// Chromium or its driver is not there (`deploy/install-packages.sh browser`).
    pub fn start(width: u32, height: u32) -> anyhow::Result<Browser> {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("chromedriver; deploy/install-packages.sh browser installs it")?;
        let mut lines = BufReader::new(driver.stdout.take().context("piped")?).lines();
        let port = loop {
            let line = lines.next().context("chromedriver ended")??;
            if let Some((_, port)) = line.split_once("successfully on port ") {
                break port.trim_end_matches('.').to_owned();
            }
        };
        // It must never block on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let mut browser = Browser { driver, address: format!("127.0.0.1:{port}"), session: String::new() };
        let window = format!("--window-size={width},{height}");
        let arguments =
            ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", &window];
        let options = json!({"alwaysMatch": {"goog:chromeOptions": {"args": arguments}}});
        let made = browser.call("POST", "", Some(&json!({"capabilities": options})))?;
        browser.session = format!("/{}", made["sessionId"].as_str().context("a session without an id")?);
        Ok(browser)
    }

    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let path = format!("/session{}{path}", self.session);
        let (status, text) = http::request(&self.address, method, &path, body)?;
        let mut answer: Value =
            serde_json::from_str(&text).with_context(|| format!("WebDriver said: {text}"))?;
        if status != 200 {
            bail!("{method} {path}: {}", answer["value"]["message"]);
        }
        Ok(answer["value"].take())
    }

    /// Loads `url`.
    ///
    /// # Errors
    /// It cannot be loaded.
    pub fn open(&self, url: &str) -> anyhow::Result<()> {
        self.call("POST", "/url", Some(&json!({"url": url}))).map(drop)
    }

    /// Runs `script`, the body of a function, on the page and returns what it returns.
    ///
    /// # Errors
    /// It throws.
    pub fn run(&self, script: &str) -> anyhow::Result<Value> {
        self.call("POST", "/execute/sync", Some(&json!({"script": script, "args": []})))
    }

    /// Changes the window's size.
    ///
    /// # Errors
    /// The browser is gone.
    pub fn resize(&self, width: u32, height: u32) -> anyhow::Result<()> {
        self.call("POST", "/window/rect", Some(&json!({"width": width, "height": height}))).map(drop)
    }

    /// Saves what is seen as a PNG.
    ///
    /// # Errors
    /// The browser is gone, or `path` cannot be written.
    pub fn screenshot(&self, path: &Path) -> anyhow::Result<()> {
        let image = self.call("GET", "/screenshot", None)?;
        std::fs::write(path, base64(image.as_str().context("a screenshot is a text")?)?)?;
        Ok(())
    }
}

fn base64(text: &str) -> anyhow::Result<Vec<u8>> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0);
    for letter in text.bytes().filter(|letter| *letter != b'=') {
        let value = ALPHABET.iter().position(|known| *known == letter).context("no base64")?;
        bits = (bits << 6 | u32::try_from(value)?) & 0x00ff_ffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff)?);
        }
    }
    Ok(bytes)
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ends the browser; its driver is ended by force.
        let _ = self.call("DELETE", "", None);
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn base64_is_decoded() {
        assert_eq!(super::base64("aGVsbG8sIHdvcmxk").unwrap(), b"hello, world");
        assert_eq!(super::base64("aGVsbG8=").unwrap(), b"hello");
        assert!(super::base64("a b").is_err());
    }
}
